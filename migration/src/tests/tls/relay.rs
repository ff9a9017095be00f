//! Somebody between source and destination who passes TLS records on, notes them, and does
//! something to one of them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::*;

/// What happens to a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Harm {
    /// The connection is cut before it.
    CutBefore,
    /// In it.
    CutWithin,
    /// Behind it.
    CutBehind,
    /// One bit of its content is wrong.
    Flip,
    /// It and all that follows is kept; the connection stays.
    Keep,
    /// It comes twice.
    Twice,
}

pub(super) const HARMS: [Harm; 6] =
    [Harm::CutBefore, Harm::CutWithin, Harm::CutBehind, Harm::Flip, Harm::Keep, Harm::Twice];

/// Which record, in which direction (0: to the destination), of the first connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) direction: usize,
    pub(super) record: usize,
    pub(super) harm: Harm,
}

/// What went over a connection in each direction, and how many records that were.
type Wire = Arc<Mutex<[(Vec<u8>, usize); 2]>>;

/// Called before a further connection is made.
type Hook = Box<dyn Fn() + Send>;

pub(super) struct Relay {
    at: Endpoint,
    wires: Arc<Mutex<Vec<Wire>>>,
}

impl Relay {
    pub(super) fn to(listener: &Listener) -> Self {
        Self::new(listener, None, Box::new(|| ()))
    }

    pub(super) fn harming(listener: &Listener, plan: Plan) -> Self {
        Self::new(listener, Some(plan), Box::new(|| ()))
    }

    pub(super) fn new(listener: &Listener, plan: Option<Plan>, before_further: Hook) -> Self {
        let Endpoint::Tls(to) = listener.endpoint().unwrap() else { unreachable!() };
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = Endpoint::Tls(own.local_addr().unwrap().to_string());
        let wires = Arc::new(Mutex::new(Vec::<Wire>::new()));
        let all = wires.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for (nr, near) in own.incoming().enumerate() {
                if nr > 0 {
                    before_further();
                }
                let Ok(far) = TcpStream::connect(&to) else { return };
                let wire = Wire::default();
                all.lock().unwrap().push(wire.clone());
                let plan = plan.filter(|_| nr == 0);
                pass(near.unwrap(), far, &wire, plan);
            }
        });
        Self { at, wires }
    }

    pub(super) fn at(&self) -> &Endpoint {
        &self.at
    }

    /// What went over each connection, there and back.
    pub(super) fn seen(&self) -> Vec<[Vec<u8>; 2]> {
        let wires = self.wires.lock().unwrap();
        let both = |wire: &Wire| wire.lock().unwrap().clone().map(|(bytes, _)| bytes);
        wires.iter().map(both).collect()
    }

    /// Records of the first connection, there and back.
    pub(super) fn records(&self) -> [usize; 2] {
        let wires = self.wires.lock().unwrap();
        wires.first().map_or([0; 2], |wire| wire.lock().unwrap().clone().map(|(_, nr)| nr))
    }
}

/// Passes both directions on, each on a thread.
fn pass(near: TcpStream, far: TcpStream, wire: &Wire, plan: Option<Plan>) {
    for (direction, from, to) in [(0, &near, &far), (1, &far, &near)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let (wire, plan) = (wire.clone(), plan.filter(|plan| plan.direction == direction));
        thread::spawn(move || {
            while let Some(record) = next(&mut from) {
                let nr = {
                    let noted = &mut wire.lock().unwrap()[direction];
                    noted.0.extend(&record);
                    noted.1 += 1;
                    noted.1 - 1
                };
                let harm = plan.filter(|plan| plan.record == nr).map(|plan| plan.harm);
                if !deliver(&mut to, record, harm) {
                    break;
                }
            }
            if plan.is_none_or(|plan| plan.harm != Harm::Keep) {
                // One end without the other is not what a broken connection is.
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            }
        });
    }
}

/// Passes one record on. Whether more may follow.
fn deliver(to: &mut TcpStream, mut record: Vec<u8>, harm: Option<Harm>) -> bool {
    match harm {
        Some(Harm::CutBefore | Harm::Keep) => return false,
        Some(Harm::CutWithin) => record.truncate(record.len() / 2),
        Some(Harm::Flip) => {
            let at = record.len() / 2 + 2;
            record[at] ^= 0x10;
        }
        Some(Harm::Twice) => record.extend_from_within(..),
        Some(Harm::CutBehind) | None => {}
    }
    to.write_all(&record).is_ok() && !matches!(harm, Some(Harm::CutWithin | Harm::CutBehind))
}

/// The next record: five bytes of header, the last two its length.
fn next(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record).ok()?;
    let len = u16::from_be_bytes([record[3], record[4]]);
    record.resize(5 + usize::from(len), 0);
    from.read_exact(&mut record[5..]).ok()?;
    Some(record)
}
