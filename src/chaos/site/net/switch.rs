//! An IP switch in this process: a thread between TUN devices, one in each node's namespace and one
//! of the host. It forwards by destination address; what [`Lines`] holds back waits. As long as there
//! is no fault it forwards large pieces, then packets of the size that a network carries.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::Shape;
use super::ffi::{HEADER, set_large};
use super::lines::{Fate, Lines, Port};

/// Packets that are read from one device before the others have their turn.
const TURN: usize = 64;
/// Nothing is longer, with what a device says about it.
const MOST_BYTES: usize = HEADER + 65_535;
/// The event of the descriptor that wakes the thread; devices have theirs by number.
const WAKE: u64 = u64::MAX;

/// A running switch; dropping it ends its thread, and with that its devices.
#[derive(Debug)]
pub(super) struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<Lines>,
    devices: Vec<Device>,
    wake: OwnedFd,
    is_over: AtomicBool,
}

/// A device and whose it is.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) file: File,
    pub(super) address: Ipv4Addr,
    pub(super) port: Port,
}

impl Switch {
    /// Starts to forward between these devices; `seed` decides which packets are lost.
    ///
    /// # Errors
    /// The system gives no descriptor or no thread.
    pub(super) fn start(devices: Vec<Device>, seed: u64) -> io::Result<Self> {
        let nodes = devices.iter().filter(|device| device.port != Port::Host).count();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let lines = Mutex::new(Lines::new(nodes, seed));
        let shared = Arc::new(Shared { lines, devices, wake, is_over: AtomicBool::new(false) });
        shared.size_packets(&shared.lines())?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (number, device) in shared.devices.iter().enumerate() {
            let data = EventData::new_u64(number as u64);
            epoll::add(&epoll, &device.file, data, EventFlags::IN)?;
        }
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let forwarder = Forwarder { shared: shared.clone(), epoll };
        let thread = std::thread::Builder::new().name("chaos-switch".to_owned());
        let thread = Some(thread.spawn(move || forwarder.run())?);
        Ok(Self { shared, thread })
    }

    /// Shapes a node's packets from now on; with `spares_host` only those between nodes.
    ///
    /// # Errors
    /// The kernel does not give smaller packets.
    pub(super) fn shape(&self, node: usize, shape: Shape, spares_host: bool) -> io::Result<()> {
        let mut lines = self.shared.lines();
        lines.shape(node, shape, spares_host);
        self.shared.size_packets(&lines).inspect_err(|_| lines.clear(node, Instant::now()))
    }

    /// Lets all of a node's packets pass again.
    pub(super) fn clear(&self, node: usize) {
        let mut lines = self.shared.lines();
        lines.clear(node, Instant::now());
        let _ = self.shared.size_packets(&lines); // small ones pass as well
        self.shared.wake();
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has nothing to say
        }
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size_packets(&self, lines: &Lines) -> io::Result<()> {
        let is_large = !lines.has_fault();
        self.devices.iter().try_for_each(|device| set_large(&device.file, is_large))
    }

    fn wake(&self) {
        // It fails only if it is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The thread's own.
struct Forwarder {
    shared: Arc<Shared>,
    epoll: OwnedFd,
}

impl Forwarder {
    fn run(self) {
        let mut events = Vec::with_capacity(self.shared.devices.len() + 1);
        let mut packet = vec![0; MOST_BYTES];
        while !self.shared.is_over.load(Ordering::Acquire) {
            events.clear();
            let timeout = self.timeout();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let mut lines = self.shared.lines();
            lines.due(Instant::now(), |to, packet| self.send(to, packet));
            for event in &events {
                self.serve(event, &mut lines, &mut packet);
            }
        }
    }

    /// How long nothing has to be done if nothing comes; whole milliseconds, as the kernel counts.
    fn timeout(&self) -> Option<Timespec> {
        let next = self.shared.lines().next_due()?;
        let left = next.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000) as i64;
        Some(Timespec { tv_sec: left / 1000, tv_nsec: left % 1000 * 1_000_000 })
    }

    fn serve(&self, event: &Event, lines: &mut Lines, packet: &mut [u8]) {
        let number = event.data.u64();
        if number == WAKE {
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8][..]);
            return;
        }
        let Some(from) = self.shared.devices.get(number as usize) else { return };
        let now = Instant::now();
        for _ in 0..TURN {
            let bytes = match rustix::io::read(&from.file, &mut *packet) {
                Ok(bytes) => bytes,
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => {
                    // The device is gone with its namespace, and would be reported for ever.
                    let _ = epoll::delete(&self.epoll, &from.file);
                    return;
                }
            };
            let packet = &packet[..bytes];
            let Some(to) = receiver(packet).and_then(|to| self.port(to)) else { continue };
            if lines.take(now, (from.port, to), packet) == Fate::Passes {
                self.send(to, packet);
            }
        }
    }

    fn port(&self, address: Ipv4Addr) -> Option<Port> {
        self.shared
            .devices
            .iter()
            .find(|device| device.address == address)
            .map(|device| device.port)
    }

    fn send(&self, to: Port, packet: &[u8]) {
        if let Some(device) = self.shared.devices.iter().find(|device| device.port == to) {
            // A network may lose what its receiver does not take.
            let _ = rustix::io::write(&device.file, packet);
        }
    }
}

/// Whom an IPv4 packet is for; `None` for anything else.
fn receiver(packet: &[u8]) -> Option<Ipv4Addr> {
    let packet = packet.get(HEADER..)?;
    let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    (packet[0] >> 4 == 4).then(|| to.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_for_its_destination() {
        let mut packet = [0; HEADER + 20];
        packet[HEADER] = 0x45;
        packet[HEADER + 12..].copy_from_slice(&[10, 213, 7, 1, 10, 213, 7, 254]);
        assert_eq!(receiver(&packet), Some(Ipv4Addr::new(10, 213, 7, 254)));
        assert_eq!(receiver(&packet[..HEADER + 19]), None);
        packet[HEADER] = 0x65;
        assert_eq!(receiver(&packet), None);
        assert_eq!(receiver(&[]), None);
    }
}
