//! Files beside the command lines that say the same.

use std::fs;
use std::path::Path;

use clap::{CommandFactory, Parser};
use wherry_vmm::config::{NetBackend, ReceiveConfig, RunConfig, TokenTo};

use super::super::args::{Cli, Command};
use super::super::output::Output;
use super::super::run;
use super::*;

/// A folder with files in it.
struct Files(tempfile::TempDir);

impl Files {
    fn new(text: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("vm.toml", text);
        files
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A command line, `F` for the folder.
    fn line(&self, text: &str) -> Vec<OsString> {
        let folder = self.path("");
        text.split(' ').map(|word| word.replace("F/", &folder).into()).collect()
    }

    fn command(&self, text: &str) -> Result<Command, String> {
        let line = expand(&self.line(text)).map_err(|e| e.message)?;
        Ok(Cli::try_parse_from(line).map_err(|e| e.to_string())?.command)
    }

    fn run(&self, options: &str) -> Result<RunConfig, String> {
        match self.command(&format!("wherry run {options}"))? {
            Command::Run(args) => run::run_config(args).map_err(|e| e.message),
            _ => unreachable!(),
        }
    }

    fn receive(&self, options: &str) -> Result<ReceiveConfig, String> {
        match self.command(&format!("wherry receive {options}"))? {
            Command::Receive(args) => {
                run::receive_config(args, &Output::standard()).map_err(|e| e.message)
            }
            _ => unreachable!(),
        }
    }
}

fn run(text: &str, options: &str) -> Result<RunConfig, String> {
    Files::new(text).run(options)
}

/// What is wrong with a file.
fn wrong(text: &str) -> String {
    let files = Files::new(text);
    let error = files.run("--config F/vm.toml").unwrap_err();
    error.strip_prefix(&format!("{}:", files.path("vm.toml"))).unwrap_or(&error).to_owned()
}

/// Says the same as [`LINE`] in other ways.
const FILES: [&str; 3] = [
    r#"
name = "web"
kernel = "k"
cmdline = "console=ttyS0"
append = ["quiet", "init=/x path=y"]
cpus = 4
memory = "2GiB"
serial = "file:web.log,max=1MiB"
no-reboot = true
balloon-features = ["hinting", "stats"]
rng = false
hostname = "web.example"
credential = ["a.b=c=d", "e="]
load-credential = "s.t=secret"
ssh-key = "key.pub"
net = ["tap=web0,mac=02:00:00:00:00:01,mtu=1400", "fd=5,id=db"]
disk = ["root.raw,serial=x", 'path="a,b.raw",readonly=on,iops=5']
"#,
    r#"
"name" = 'web'
kernel = "./k"
append = ["quiet", "init=/x path=y"]
memory = "2048MiB"
cpus = "4"
serial = "file:web.log,max=1024KiB"
no-reboot = true
balloon-features = "hinting,stats"
rng = "off"
hostname = "web.example"
ssh-key = ["key.pub"]
credential.a.b = "c=d"
credential.e = ""
[[net]]
tap = "web0"
mac = "02:00:00:00:00:01"
mtu = 1_400
[[net]]
fd = 5
id = "db"
[load-credential]
s.t = "secret"
[[disk]]
path = "root.raw"
serial = "x"
[[disk]]
readonly = true
iops = 5
path = "a,b.raw"
"#,
    r#"
name = "web"
kernel = "~/k"
append = "quiet"
disk = ["root.raw,serial=x"]
credential = { "a.b" = "c=d" }
load-credential = ["s.t=secret"]
ssh-key = "key.pub"
net = { tap = "web0", mac = "02:00:00:00:00:01", mtu = 1400 }
"#,
];

const LINE: &str = "web --kernel=F/k --append=quiet --cpus=4 --memory=2GiB \
    --serial=file:F/web.log,max=1MiB --no-reboot --balloon-features=hinting,stats --rng=off \
    --hostname=web.example --credential=a.b=c=d --credential=e= --load-credential=s.t=F/secret \
    --ssh-key=F/key.pub --net=tap=web0,mac=02:00:00:00:00:01,mtu=1400 --net=fd=5,id=db \
    --disk=F/root.raw,serial=x --disk=path=\"F/a,b.raw\",readonly=on,iops=5";

const KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here";

fn files(text: &str) -> Files {
    let files = Files::new(text);
    files.write("secret", "s");
    files.write("key.pub", KEY);
    files
}

/// `cmdline` of the other two has a blank in it.
fn meant(files: &Files) -> RunConfig {
    let mut config = files.run(LINE).unwrap();
    config.cmdline += " init=/x path=y";
    config
}

#[test]
fn a_file_is_the_command_line_that_it_spells() {
    for text in &FILES[..2] {
        let files = files(text);
        assert_eq!(files.run("--config F/vm.toml").unwrap(), meant(&files), "{text}");
    }
}

#[test]
fn what_is_typed_wins_and_what_may_be_repeated_is_added() {
    let files = files(FILES[0]);
    let config = files
        .run(
            "mail --memory 4GiB --disk x.raw --net tap=more --append=last --config F/vm.toml \
             --balloon-features reporting --rng on --no-reboot",
        )
        .unwrap();
    assert_eq!((config.name.as_str(), config.ram_bytes, config.nr_vcpus), ("mail", 4 << 30, 4));
    assert!(config.cmdline.ends_with(" quiet init=/x path=y last"), "{}", config.cmdline);
    let balloon = config.balloon.unwrap();
    assert!(balloon.reporting && !balloon.stats && config.rng);
    let disks: Vec<_> = config.disks.iter().map(|disk| disk.shown()).collect();
    assert_eq!(disks, [files.path("root.raw"), files.path("a,b.raw"), "x.raw".into()]);
    assert_eq!(config.nets.len(), 3);
    // Right in the file or not: it is checked all the same.
    let error = run("memory = \"4GB\"", "--config F/vm.toml --memory 1GiB --kernel k").unwrap_err();
    assert!(error.contains("vm.toml:1: memory: GB is ambiguous"), "{error}");
    // What an option needs may be on the other side.
    let initrd = run("initrd = \"i\"", "--kernel k --config F/vm.toml").unwrap().initrd;
    assert!(initrd.is_some_and(|path| Path::new(&path).is_absolute()));
    // Twice is still wrong.
    let twice = run("cpus = 2", "--kernel k --config F/vm.toml --memory 1G --memory 2G");
    assert!(twice.unwrap_err().contains("cannot be used multiple times"));
}

#[test]
fn what_is_typed_wins_over_what_it_excludes() {
    let files = Files::new("tls = \"keys\"\ntls-peer = \"host-a\"");
    let line = "web tls:b:4 --config F/vm.toml";
    let told = |more: &str| {
        let config = files.receive(&format!("{line}{more}")).unwrap();
        (config.tls.map(PathBuf::from), config.tls_peers, config.token)
    };
    let keys = Some(PathBuf::from(files.path("keys")));
    assert_eq!(told(""), (keys, vec!["host-a".into()], None));
    assert_eq!(told(" --token"), (None, vec![], Some(TokenTo::Line)));
    let file = TokenTo::File(files.path("token").into());
    files.write("vm.toml", "token-file = \"token\"\ntoken = true");
    assert_eq!(told(""), (None, vec![], Some(file)));
    assert_eq!(told(" --tls /k"), (Some("/k".into()), vec![], None));
    // Both typed, or both in the file, are wrong as ever; so is a key that is left out.
    let both = files.receive(&format!("{line} --tls /k --token")).unwrap_err();
    assert!(both.contains("cannot be used with"), "{both}");
    files.write("vm.toml", "tls = \"keys\"\ntoken = true");
    let both = files.receive(line).unwrap_err();
    assert!(both.contains("cannot be used with"), "{both}");
    files.write("vm.toml", "tls = [\"keys\"]");
    let wrong = files.receive(&format!("{line} --token")).unwrap_err();
    assert!(wrong.contains(":1: tls: one value is wanted"), "{wrong}");
}

#[test]
fn a_file_lets_a_stream_be_in_clear_only_where_a_clear_one_was_typed() {
    let files = Files::new("insecure = true");
    let told = |line: &str| files.receive(&format!("{line} --config F/vm.toml"));
    assert_eq!(told("web tcp:10.0.0.2:4").unwrap().uri, "tcp:10.0.0.2:4");
    for (line, tls) in [
        ("web tls:b:4 --tls /k", Some("/k".into())),
        ("web tls:b:4 --token", None),
        ("web unix:/x", None),
    ] {
        assert_eq!(told(line).unwrap().tls, tls, "{line}");
    }
    assert!(told("web tls:b:4").unwrap_err().contains("needs --token, or --tls"));
    for means in ["--token", "--tls /k"] {
        assert!(
            told(&format!("web tcp:10.0.0.2:4 {means}")).unwrap_err().contains("not encrypted")
        );
    }
    // Typed, it is said in vain. The name may be the file's.
    assert!(told("web tls:b:4 --token --insecure").unwrap_err().contains("--insecure is for tcp"));
    files.write("vm.toml", "name = \"web\"\ninsecure = true");
    assert_eq!(told("tcp:10.0.0.2:4").unwrap().name, "web");
    // What protects is not left out in silence, whatever was typed.
    for text in ["tls = \"keys\"", "token = true", "insecure = true\ntls = \"keys\""] {
        files.write("vm.toml", text);
        for more in ["", " --insecure"] {
            let error = told(&format!("web tcp:10.0.0.2:4{more}")).unwrap_err();
            assert!(error.contains("is not encrypted"), "{text}{more}: {error}");
        }
    }
    assert!(told("web tls:b:4").is_ok(), "one file for both");
}

#[test]
fn unknown_keys_and_wrong_values_are_refused_with_their_lines() {
    for (text, why) in [
        ("cpus = 2\n\nmemroy = \"1GiB\"", "3: there is no key `memroy`; did you mean `memory`?"),
        ("ssh_key = \"a\"", "1: there is no key `ssh_key`; did you mean `ssh-key`?"),
        ("max-memroy = \"1GiB\"", "1: there is no key `max-memroy`; did you mean `max-memory`?"),
        ("\"\" = 1", "1: there is no key ``; the keys are the options"),
        ("\"a\\u0007b\" = 1", "1: there is no key `a\\u{7}b`"),
        ("config = \"x\"", "1: there is no key `config`"),
        ("json = true", "1: there is no key `json`"),
        ("uri = \"tcp:a:1\"", "1: there is no key `uri`"),
        ("[x]\ny = 1", "1: there is no key `x`"),
        ("cpus = 1\nmemory = \"1\"", "2: memory: a size needs a unit"),
        ("memory = 1024", "1: memory: a size needs a unit"),
        ("memory = [\"1GiB\"]", "1: memory: one value is wanted"),
        ("memory = { a = 1 }", "1: memory: a table has no meaning"),
        ("memory = 2020-01-01", "1: memory: a date"),
        ("cpus = 0x4", "1: cpus: invalid digit"),
        ("rng = \"maybe\"", "1: rng: invalid value 'maybe' for '--rng <RNG>' [possible values: on"),
        ("no-reboot = \"on\"", "1: no-reboot: write true or false"),
        ("name = \"-x\"", "1: name: use 1 to 64"),
        ("hostname = \"a\\u0000\"", "1: hostname: a zero byte"),
        ("disk = [\n \"a\",\n \"b,readonly=yes\",\n]", "3: disk: readonly=yes: write on or off"),
        ("[[disk]]\npath = \"a\"\n\n[[disk]]\npath = \"b\"\nreadonly = 1", "6: disk: readonly=1"),
        ("[[disk]]\nid = \"a\"\npth = \"b\"\npath = \"c\"", "3: disk: `pth=b` is unknown"),
        ("[[disk]]\nid = \"a\"", "1: disk: no file"),
        ("[[disk]]\n\"a,b\" = 1", "2: disk: `a,b` is unknown"),
        ("[[disk]]\npath = [\"a\"]\nid = [\"b\",\n\"c\"]", "3: disk: id= is there twice"),
        ("[[disk]]\npath = [[\"a\"]]", "2: disk: a list has no meaning"),
        ("disk = [[\"a\"]]", "1: disk: a list has no meaning"),
        ("[credential]\n\"a=b\" = \"c\"", "2: credential: a name with `=`"),
        ("[net]\ntap = \"a\"\nfd = 5", "2: net: write tap=NAME or fd=N"),
        ("balloon-features = [\"stats\", \"x\"]", "1: balloon-features: invalid value 'x'"),
        ("balloon-features = []", "1: balloon-features: "),
        ("max-memory = \"1MiB\"", "1: max-memory: every guest has 128 MiB"),
    ] {
        let error = wrong(text);
        assert!(error.starts_with(why), "{text}: {error}");
    }
    let many = format!("append = [{}]", "\"x\",".repeat(257));
    assert!(wrong(&many).starts_with("1: append: 257 values; 256 are the most"));
    let many: String = (0..257).map(|n| format!("a{n} = 1\n")).collect();
    assert!(wrong(&format!("[net]\n{many}")).contains("256 are the most"));
}

#[test]
fn a_file_that_is_no_toml_is_refused_and_its_lines_are_not_shown() {
    for (text, line) in [
        ("cpus = 1\ncredential = [\"password=hunter2\"\nname = \"x\"", 3),
        ("a", 1),
        ("cpus = 1\ncpus = hunter2", 2),
        ("[disk]\n[disk]", 2),
        ("a = \"\n", 1),
    ] {
        let error = wrong(text);
        assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        assert!(error.starts_with(&format!("{line}: ")), "{text}: {error}");
    }
    let deep = format!("a = {}1", "[".repeat(100_000));
    assert!(wrong(&deep).starts_with("1: "), "no end of nesting");
}

#[test]
fn one_file_serves_both_sides() {
    let files = files(FILES[0]);
    files.write("vm.toml", format!("max-memory = \"3GiB\"\n{}", FILES[0].trim_start()));
    let config = files.receive("mail tcp:localhost:4 --config F/vm.toml --disk more").unwrap();
    assert_eq!((config.name.as_str(), config.max_memory), ("mail", Some(3 << 30)));
    let run = files.run("--config F/vm.toml").unwrap();
    assert_eq!(config.serial, run.serial);
    assert_eq!(config.disks[..2], run.disks);
    assert_eq!(config.disks[2].id, "disk2");
    // What comes with the guest is no word of this host's.
    let ends: Vec<_> = run.nets.into_iter().map(|net| net.end).collect();
    assert_eq!(config.nets, ends);
    assert_eq!(config.nets[0].backend, NetBackend::Tap("web0".into()));
    assert!(
        files.receive("mail tcp:localhost:4 --net tap=a,mtu=1400").is_err(),
        "typed, it is refused"
    );
    // The name may come from the file, the address may not.
    for line in ["tcp:localhost:4 --config F/vm.toml", "--config F/vm.toml tcp:localhost:4"] {
        assert_eq!(files.receive(line).unwrap().name, "web");
    }
    let error = files.receive("web --config F/vm.toml").unwrap_err();
    assert!(error.contains("write unix:/PATH, tcp:HOST:PORT or tls:HOST:PORT"), "{error}");
    // What is left out is checked.
    files.write("vm.toml", "memory = \"1\"");
    let error = files.receive("web tcp:localhost:4 --config F/vm.toml").unwrap_err();
    assert!(error.contains(":1: memory: a size needs a unit"), "{error}");
}

#[test]
fn paths_begin_in_the_folder_of_the_file() {
    let files = Files::new("");
    let disk = |text: &str| {
        files.write("vm.toml", text);
        files.run("--config F/vm.toml").unwrap().disks[0].shown()
    };
    for text in ["disk = \"a\"", "disk = \"path=a\"", "[[disk]]\npath = \"a\"", "disk = [\"a\"]"] {
        assert_eq!(disk(text), files.path("a"), "{text}");
    }
    assert_eq!(disk("disk = \"/dev/x,id=a\""), "/dev/x");
    assert_eq!(disk("disk = \"id=path,path=b=c\""), files.path("b=c"));
    let home = std::env::var("HOME").unwrap();
    assert_eq!(disk("disk = \"~/a\""), format!("{home}/a"));
    // What is typed begins where it is typed.
    let run = files.run("--config F/vm.toml --disk a").unwrap();
    assert_eq!(run.disks[1].shown(), "a");
}

#[test]
fn words_of_a_table_may_be_repeated() {
    let text = r#"
        [[net]]
        user = true
        forward = ["2222:22", "8080:80"]
        mac = "02:00:00:00:00:01"
    "#;
    let typed = "--net user,forward=2222:22,forward=8080:80,mac=02:00:00:00:00:01";
    let meant = run("", &format!("web --kernel k {typed}")).unwrap();
    assert_eq!(run(text, "web --kernel k --config F/vm.toml").unwrap(), meant);
}

#[test]
fn files_that_are_none_are_refused() {
    let files = Files::new("");
    let pipe = files.path("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    files.write("text", b"cpus = 1\n# \xff");
    files.write("large", vec![b'\n'; (1 << 20) + 1]);
    for (name, why) in [
        ("none", "no such file"),
        ("", "not a file"),
        ("pipe", "not a file"),
        ("text", "line 2 is not UTF-8"),
        ("large", "more than 1 MiB"),
    ] {
        let error = files.run(&format!("--config F/{name}")).unwrap_err();
        let path = files.path(name);
        assert_eq!(error, format!("--config {path}: {why}"));
    }
    files.write("large", vec![b'\n'; 1 << 20]);
    assert!(files.run("--config F/large --kernel k").is_ok());
    assert!(files.run("--config /dev/zero").unwrap_err().ends_with("not a file"));
}

#[test]
fn every_option_is_a_key_or_is_none_on_purpose() {
    let root = Cli::command();
    let mut nr = 0;
    for command in ["run", "receive"] {
        for arg in root.find_subcommand(command).unwrap().get_arguments() {
            let id = arg.get_id().as_str();
            let Some(key) = grammar::key(arg) else {
                assert!(grammar::WITHOUT.contains(&id), "{command} --{id} has no key");
                continue;
            };
            nr += 1;
            // No value is right for all; but each is taken to its option.
            let given = Given::nothing(command);
            for text in [format!("{key} = true"), format!("{key} = \"\"")] {
                if let Err(fault) = given.words(&text, Folder::none()) {
                    assert!(fault.why.starts_with(&format!("{key}: ")), "{text}: {}", fault.why);
                }
            }
        }
    }
    assert!(nr > 20, "{nr}");
}

#[test]
fn what_is_shown_reads_back_to_the_same() {
    let again = |files: &Files, options: &str| {
        let line = expand(&files.line(&format!("wherry config {options}"))).unwrap();
        let matches = Cli::command().try_get_matches_from(&line).unwrap();
        let text = show::text(&matches, &Folder::here()).unwrap();
        fs::create_dir_all(files.path("elsewhere")).unwrap();
        files.write("elsewhere/shown.toml", &text);
        let shown = files.run("--config F/elsewhere/shown.toml");
        (shown.unwrap_or_else(|e| panic!("{text}: {e}")), text)
    };
    let no_secrets = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("credential"));
        lines.collect::<Vec<_>>().join("\n")
    };
    for text in FILES {
        let files = files(&no_secrets(text));
        for more in ["", " --memory 3GiB --append \"\\\u{7f}\t' --disk /x,id=more --hostname h"] {
            let options = format!("--config F/vm.toml{more}");
            let meant = files.run(&options).unwrap();
            let (shown, text) = again(&files, &options);
            assert_eq!(shown, meant, "{text}");
            // And once more, with nothing typed.
            let (shown, twice) = again(&files, "--config F/elsewhere/shown.toml");
            assert_eq!((shown, twice), (meant, text));
        }
    }
    let files = Files::new("");
    let (shown, text) = again(&files, "--kernel /k");
    assert_eq!(shown, files.run("--kernel /k").unwrap());
    let defaults = "cpus = 1\nmemory = \"1GiB\"\nserial = \"stdio\"\nno-reboot = false\n";
    assert!(text.starts_with(&format!("kernel = \"/k\"\n{defaults}")), "{text}");
}
