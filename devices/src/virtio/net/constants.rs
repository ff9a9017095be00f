//! Constants of the network device (virtio 1.3, section 5.1).

/// Device id (section 5).
pub const DEVICE_ID: u32 = 1;

/// Queue for frames to the guest (section 5.1.2).
pub const RX: usize = 0;
/// Queue for frames from the guest.
pub const TX: usize = 1;
/// Control queue.
pub const CTRL: usize = 2;

/// Features (section 5.1.3).
#[allow(missing_docs)]
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// What frames may leave to the guest: the bits of CTRL_GUEST_OFFLOADS_SET (section
    /// 5.1.6.5.6.1), which are those of the features.
    pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
    /// What frames may leave to the host.
    pub const HOST_OFFLOADS: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
}

/// Status in config space: there is a link (section 5.1.4).
pub const S_LINK_UP: u16 = 1;
/// Status in config space: the driver is to tell the network where it is.
pub const S_ANNOUNCE: u16 = 2;

/// Classes and commands of the control queue (section 5.1.6.5).
pub const CTRL_ANNOUNCE_ACK: [u8; 2] = [3, 0];
/// What frames may leave to the guest.
pub const CTRL_GUEST_OFFLOADS_SET: [u8; 2] = [5, 0];
/// The command was obeyed.
pub const CTRL_OK: u8 = 0;
/// It was not.
pub const CTRL_ERR: u8 = 1;

/// Bytes of `struct virtio_net_hdr` (section 5.1.6).
pub const HEADER: usize = 12;
/// Where its `num_buffers` is.
pub const NUM_BUFFERS: usize = 10;
/// Header flag: the checksum is left to who gets it.
pub const HDR_NEEDS_CSUM: u8 = 1;
/// Header flag: the checksum has been looked at.
pub const HDR_DATA_VALID: u8 = 2;
/// Kinds of segmentation (`gso_type`).
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Bit beside the kind: TCP with ECN.
pub const GSO_ECN: u8 = 0x80;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Longest frame with its header: what cutting it into segments takes (section 5.1.6.3.1).
pub const MAX_FRAME: usize = HEADER + 65550;
