//! `--serial`: where a console goes.

use wherry_vmm::config::SerialSink;

use super::units;

/// One `--serial`.
pub fn parse(text: &str) -> Result<SerialSink, String> {
    match text {
        "stdio" => Ok(SerialSink::Stdio),
        "pty" => Ok(SerialSink::Pty),
        "none" => Ok(SerialSink::None),
        _ => match text.strip_prefix("file:") {
            Some(file) if !file.is_empty() => file_sink(file),
            _ => Err("write stdio, file:PATH, pty or none".into()),
        },
    }
}

fn file_sink(text: &str) -> Result<SerialSink, String> {
    let (path, max) = match text.rsplit_once(",max=") {
        Some((path, max)) => (path, Some(units::size(max)?)),
        None => (text, None),
    };
    match path {
        "" => Err("write file:PATH or file:PATH,max=SIZE".into()),
        _ if max == Some(0) => Err("a file of size 0 takes nothing; write none".into()),
        path => Ok(SerialSink::File { path: path.into(), max }),
    }
}
