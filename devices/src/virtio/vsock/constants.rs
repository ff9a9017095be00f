//! Constants of the socket device (virtio 1.3, section 5.10).

/// Device id (section 5).
pub const DEVICE_ID: u32 = 19;

/// Queue for packets to the guest (section 5.10.2).
pub const RX: usize = 0;
/// Queue for packets from the guest.
pub const TX: usize = 1;
/// Queue for events.
pub const EVENT: usize = 2;

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// The host's address (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// Type of a packet: of a stream (section 5.10.6).
pub const TYPE_STREAM: u16 = 1;

/// Operations (section 5.10.6).
#[allow(missing_docs)]
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flag of SHUTDOWN: the sender takes no more (section 5.10.6.5).
pub const ENDS_RECEIVING: u32 = 1;
/// Flag of SHUTDOWN: the sender sends no more.
pub const ENDS_SENDING: u32 = 2;
/// Both.
pub const ENDS_BOTH: u32 = ENDS_RECEIVING | ENDS_SENDING;

/// Event: all connections are gone (section 5.10.6.7).
pub const EVENT_TRANSPORT_RESET: u32 = 0;
/// Bytes of an event.
pub const EVENT_BYTES: u32 = 4;

/// Bytes of `struct virtio_vsock_hdr` (section 5.10.6).
pub const HEADER: usize = 44;
/// Most bytes behind one header, of which Linux sends as many.
pub const MAX_PAYLOAD: usize = 64 << 10;
