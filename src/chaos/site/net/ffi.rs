//! Makes TUN devices: network devices whose other end is a file.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// What makes them.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// Bytes before each packet: `struct virtio_net_hdr`. What one device says about a packet (still to be
/// cut into segments, still without its checksum) is told to another one as it is.
pub(super) const HEADER: usize = 10;

/// A new device of this name, in the namespace of the calling thread. Each read of the file, which
/// does not wait, is one IP packet that was sent to the device, after [`HEADER`] bytes; each write is
/// one that the device receives. The device is gone when the file is closed.
///
/// # Errors
/// The name is longer than 15 bytes or taken, there is no `/dev/net/tun`, or we may not use it.
pub(super) fn tun(name: &str) -> io::Result<File> {
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::other(format!("{name}: a device's name has at most 15 bytes")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    // SAFETY: The descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which outlives the
    // call; its name ends with a zero, since it is shorter than the array.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the device hands out up to 64 KiB of a connection as one packet, unsegmented and without a
/// checksum: much less work, but not what a real network carries.
///
/// # Errors
/// The kernel refuses; nothing has changed then.
pub(super) fn set_large(file: &File, is_large: bool) -> io::Result<()> {
    let offloads = if is_large { libc::TUN_F_CSUM | libc::TUN_F_TSO4 } else { 0 };
    // SAFETY: The descriptor is open, and TUNSETOFFLOAD takes a number, no address.
    match unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
