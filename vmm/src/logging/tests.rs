use std::os::unix::net::UnixDatagram;

use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::fixture::Heard;
use super::journal::Journal;
use super::*;

/// What a guest or a peer would like an administrator's terminal to do.
const RUDE: &str = "x\x1b]0;pwned\x07\nwherry: web: all is well\r\u{9b}2J\u{202e}";

fn rude() {
    warn!(peer = RUDE, round = 3u32, "turned away {RUDE}");
}

fn object(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

#[test]
fn people_get_the_text_and_programs_the_fields() {
    let say = || {
        warn!(
            migration = "a1",
            phase = "rounds",
            round = 2u32,
            hint = "do this\nor that",
            "it is so"
        );
        debug!("for nobody");
        info!(target: COURSE, "of interest afterwards");
    };
    let heard = Heard::new(Format::Human);
    heard.during(say);
    assert_eq!(heard.text(), "wherry: it is so\n  do this\nor that\n");
    let heard = Heard::new(Format::Json);
    heard.during(say);
    let text = heard.text();
    let mut lines: Vec<Value> = text.lines().map(object).collect();
    let time = lines[0].as_object_mut().unwrap().remove("time").unwrap();
    assert!(time.as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')), "{time}");
    let first = json!({"level": "warn", "vm": "web", "message": "it is so", "migration": "a1",
        "phase": "rounds", "round": 2, "hint": "do this\nor that"});
    assert_eq!((lines.len(), &lines[0]), (2, &first));
    assert_eq!(lines[1]["message"], "of interest afterwards");
}

#[test]
fn words_of_others_make_no_lines_and_move_no_cursor() {
    for format in [Format::Human, Format::Json] {
        let heard = Heard::new(format);
        heard.during(rude);
        let text = heard.text();
        let body = text.strip_suffix('\n').unwrap();
        assert!(!body.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
    let heard = Heard::new(Format::Human);
    heard.during(|| warn!("{}", "ü".repeat(1 << 20)));
    let text = heard.text();
    assert!(text.len() <= line::LONGEST + 16 && text.ends_with("ü\n"), "{} bytes", text.len());
}

/// The fields of an entry, by systemd's JOURNAL_NATIVE_PROTOCOL.
fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|b| *b == b'\n').unwrap();
        let name = String::from_utf8(entry[..end].to_vec()).unwrap();
        let (len, rest) = entry[end + 1..].split_at(8);
        let len = u64::from_le_bytes(len.try_into().unwrap()) as usize;
        all.push((name, String::from_utf8(rest[..len].to_vec()).unwrap()));
        assert_eq!(rest[len], b'\n');
        entry = &rest[len + 1..];
    }
    all
}

#[test]
fn an_entry_of_the_journal_has_fields_and_one_that_is_not_taken_goes_to_standard_error() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("socket");
    assert!(Journal::connect(&path).is_err());
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let heard = Heard::in_journal(Journal::connect(&path).unwrap());
    heard.during(rude);
    let mut entry = [0; 4096];
    let len = socket.recv(&mut entry).unwrap();
    let got = fields(&entry[..len]);
    let names: Vec<_> = got.iter().map(|(name, _)| name.as_str()).collect();
    let wanted =
        ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "WHERRY_VM", "WHERRY_PEER", "WHERRY_ROUND"];
    assert_eq!(names, wanted);
    assert!(got[0].1.starts_with("turned away x\u{fffd}]0;pwned"), "{got:?}");
    let values: Vec<_> = got[1..4].iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!((values, got[5].1.as_str()), (vec!["4", "wherry", "web"], "3"));
    assert_eq!(heard.text(), "");
    // One that nobody empties takes so many; the rest is not lost, and nobody waits.
    let said = |heard: &Heard| {
        (0..1000).for_each(|nr| {
            heard.pass(limit::WINDOW);
            heard.during(|| info!("line {nr}"));
        });
        heard.text().lines().count()
    };
    let beside = said(&heard);
    let taken = std::iter::from_fn(|| socket.recv(&mut entry).ok()).count();
    assert_eq!((beside + taken, taken > 0), (1000, true));
    drop(socket);
    assert_eq!(said(&heard), 1000);
}

#[test]
fn a_flood_at_one_place_is_counted_and_hides_no_other() {
    let heard = Heard::new(Format::Human);
    let lines = heard.flood(|nr| {
        warn!("stranger {nr}");
    });
    let all = lines.concat();
    // The first ones of each minute, and a number for the rest of it.
    for there in ["stranger 0\n", "stranger 19\n", "stranger 10000\n", "out: stranger 10019\n"] {
        assert!(all.contains(there), "{all}");
    }
    for gone in ["stranger 20\n", "stranger 9999\n"] {
        assert!(!all.contains(gone), "{all}");
    }
    let heard = Heard::new(Format::Human);
    heard.during(|| {
        (0..1000).for_each(|nr| warn!("stranger {nr}"));
        warn!("a friend");
    });
    assert!(heard.text().ends_with("wherry: a friend\n"));
    // Said with the next line of any kind, once its minute is over.
    heard.pass(limit::WINDOW);
    heard.during(|| info!("later"));
    let left = "wherry: 980 more lines like this one were left out: stranger 19\nwherry: later\n";
    assert_eq!(heard.text(), left);
    heard.end();
    assert_eq!(heard.text(), "");
}

/// Takes so many bytes, then none until it is told.
struct Full(std::sync::mpsc::Receiver<usize>, usize, Arc<Mutex<Vec<u8>>>);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1 += self.0.try_iter().sum::<usize>();
        let nr = bytes.len().min(self.1);
        if nr == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.1 -= nr;
        lock(&self.2).extend(&bytes[..nr]);
        Ok(nr)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_that_was_torn_does_not_spoil_the_next() {
    let (room, rooms) = std::sync::mpsc::channel();
    let text = Arc::<Mutex<Vec<u8>>>::default();
    let out = stderr(Full(rooms, 7, text.clone()));
    for line in [&b"one\n"[..], b"second\n", b"third\n"] {
        out(line);
    }
    room.send(100).unwrap();
    out(b"fourth\n");
    out(b"fifth\n");
    assert_eq!(lock(&text).as_slice(), b"one\nsec\nfourth\nfifth\n");
}

#[test]
fn only_a_stream_that_leads_to_the_journal_is_its_own() {
    // Nothing here was started by a service manager that has a stream of this number.
    let file = tempfile::tempfile().unwrap();
    assert!(!journal::has(&file));
}
