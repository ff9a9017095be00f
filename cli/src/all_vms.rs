//! All VMs of the runtime folder, asked at once.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use wherry_vmm::control::{Client, ControlError, ErrorCode, Info, Request, RuntimeDir};

/// How long all of them together may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A VM, and its answer or why there is none.
pub struct Answer {
    /// Its name in its folder.
    pub name: String,
    /// Whose it is, if root looks at a user's.
    pub uid: Option<u32>,
    /// What it says.
    pub info: Result<Info, ControlError>,
}

/// What each of them answers. One that has ended is left out.
///
/// Each is asked on a thread of its own, which is left to itself if the time is over: not even a
/// connection is made to a process that stands still and has many clients waiting.
pub fn ask(dir: &RuntimeDir) -> Result<Vec<Answer>, ControlError> {
    let places = dir.places()?;
    let (tell, told) = channel();
    for (nth, place) in places.iter().enumerate() {
        let (place, tell) = (place.clone(), tell.clone());
        let ask = move || {
            let info = Client::connect(&place.dir, &place.name)
                .and_then(|mut client| client.call_within(&Request::Info {}, PATIENCE));
            let _ = tell.send((nth, info));
        };
        // Who cannot be asked does not answer.
        let _ = thread::Builder::new().name("ask".into()).spawn(ask);
    }
    drop(tell);
    let mut all: Vec<Option<Result<Info, ControlError>>> = places.iter().map(|_| None).collect();
    let end = Instant::now() + PATIENCE;
    while let Ok((nth, info)) = told.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if let Some(place) = all.get_mut(nth) {
            *place = Some(info);
        }
    }
    let silent = || Err(ControlError::new(ErrorCode::Timeout, "the VM does not answer"));
    let all = all.into_iter().map(|answer| answer.unwrap_or_else(silent));
    let there = |answer: &Answer| match &answer.info {
        // A crash left its socket, or it ended just now.
        Err(e) => !matches!(e.code, ErrorCode::NoSuchVm | ErrorCode::ConnectionLost),
        Ok(_) => true,
    };
    let answers = places.into_iter().zip(all).map(|(place, info)| Answer {
        name: place.name,
        uid: place.uid,
        info,
    });
    Ok(answers.filter(there).collect())
}
