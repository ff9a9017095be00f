//! Commands over the serial console.
//!
//! A command is one line; it gets exactly one answer
//! line, which begins with the command's name or with `error`. Steps of the workload (`fill`,
//! `free`, ...) answer when they are done; the console goes on meanwhile.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use crate::check::Check;
use crate::serial::{self, say};
use crate::sys::{self, End};
use crate::work::{self, Worker};
use crate::{avx, cmdline, floor, heartbeat, stats};

/// Answers commands for ever.
pub fn serve(check: &Check, worker: &Worker) -> ! {
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    loop {
        let Some(mut input) = serial::input() else {
            std::thread::sleep(Duration::from_secs(60));
            continue;
        };
        while let Ok(len @ 1..) = input.read(&mut buffer) {
            for &byte in &buffer[..len] {
                match byte {
                    b'\r' | b'\n' => {
                        answer(String::from_utf8_lossy(&line).trim(), check, worker);
                        line.clear();
                    }
                    _ if line.len() < 4096 => line.push(byte),
                    _ => {}
                }
            }
        }
        // A hang-up of the line is no reason to stop.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn answer(line: &str, check: &Check, worker: &Worker) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(&command) = words.first() else { return };
    match command {
        "status" => say(&format!("status {}", stats::status_line())),
        "verify" => {
            let start = Instant::now();
            let (pages, bad) = check.verify_all();
            let word = if bad == 0 { "ok" } else { "failed" };
            say(&format!(
                "verify {word} pages={pages} bad={bad} ms={}",
                start.elapsed().as_millis()
            ));
        }
        "floor" => match floor::line() {
            Ok(line) => say(&format!("floor ok {line}")),
            Err(e) => say(&format!("error floor: {e}")),
        },
        "resetgap" => {
            heartbeat::reset();
            say("resetgap ok");
        }
        "drop" => write_answer(command, "/proc/sys/vm/drop_caches", "3"),
        "compact" => write_answer(command, "/proc/sys/vm/compact_memory", "1"),
        "spoil" => {
            let page = words.get(1).and_then(|w| w.parse().ok());
            let done = page.is_some_and(|page| check.spoil(page));
            say(if done { "spoil ok" } else { "error spoil: no such page" });
        }
        "cat" => match words.get(1).map(fs::read_to_string) {
            Some(Ok(text)) => {
                let text = text.trim_end().replace('\n', " | ");
                say(&format!("cat ok text={}", text.replace(|c: char| c.is_control(), ".")));
            }
            _ => say("error cat: no such file"),
        },
        "write" => match words.as_slice() {
            [_, path, value] => write_answer(command, path, value),
            _ => say("error write: file and value, please"),
        },
        "vmstat" => say(&format!("vmstat ok{}", stats::vmstat(&words[1..]))),
        "buddyinfo" => say(&format!("buddyinfo ok{}", stats::buddyinfo())),
        "dmesg" => {
            let wanted = words[1..].join(" ");
            let text = sys::kernel_log();
            let found: Vec<&str> = text.lines().filter(|line| line.contains(&wanted)).collect();
            say(&format!("dmesg ok lines={} last={}", found.len(), found.last().unwrap_or(&"")));
        }
        "avx" => {
            let (has, (rounds, bad)) = avx::status().map_or((0, (0, 0)), |counts| (1, counts));
            say(&format!("avx ok has={has} rounds={rounds} bad={bad}"));
        }
        "echo" => say(&format!("echo {}", words[1..].join(" "))),
        "fill" | "tmpfs" | "free" | "hog" | "writer" | "churn" | "cache" | "disk" | "scatter"
        | "eat" | "huge" | "sleep" | "surge" | "compaction" => match cmdline::parse_step(&words) {
            Ok(step) => work::submit(worker, step),
            Err(e) => say(&format!("error {e}")),
        },
        "poweroff" => {
            say("poweroff reason=command");
            sys::end(End::Poweroff)
        }
        "reboot" => {
            say("reboot reason=command");
            sys::end(End::Reboot)
        }
        "crash" => {
            say("crash ok");
            write_answer(command, "/proc/sysrq-trigger", "c");
        }
        "help" => say(
            "help status verify floor resetgap drop compact vmstat buddyinfo dmesg write fill free \
             tmpfs hog writer churn cache disk scatter eat huge \
              surge compaction sleep spoil cat avx echo poweroff reboot crash",
        ),
        _ => say(&format!("error unknown command {command}")),
    }
}

fn write_answer(command: &str, path: &str, value: &str) {
    match fs::write(path, value) {
        Ok(()) => say(&format!("{command} ok")),
        Err(e) => say(&format!("error {command}: {e}")),
    }
}
