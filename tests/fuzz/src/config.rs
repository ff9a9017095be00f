//! Files for `--config`: an error, or options that are shown, read again and shown alike.

/// See the module's text.
pub fn config(data: &[u8]) {
    let _ = wherry_cli::try_file(data);
}

const LISTS: &str = r#"
name = "web"
kernel = "k"
append = ["quiet", "init=/x"]
cpus = 4
memory = "2GiB"
serial = "file:web.log,max=1MiB"
no-reboot = true
balloon-features = ["hinting", "stats"]
rng = false
hostname = "web.example"
credential = ["a.b=c=d"]
load-credential = "s.t=secret"
ssh-key = "key.pub"
net = ["tap=web0,mac=02:00:00:00:00:01,mtu=1400", "fd=5,id=db"]
disk = ["root.raw,serial=x", 'path="a,b.raw",readonly=on,iops=5']
max-memory = "3GiB"
"#;

const TABLES: &str = r#"
'memory' = """2048MiB"""
cpus = 2
balloon = 'off'
credential.a.b = "c=d"
[[net]]
tap = "web0"
mtu = 1_400
offloads = false
[[disk]]
path = "~/a,b.raw"
bps = "1MB/s"
[load-credential]
s.t = "secret"
"#;

pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("lists", LISTS.into()),
        ("tables", TABLES.into()),
        ("inline", b"disk = { path = \"a\", lock = true }\nkernel = \"k\\u0041\"".into()),
        ("unknown", b"memroy = \"1GiB\"".into()),
        ("broken", b"[[disk]]\npath = \"a".into()),
    ]
}
