//! Real packets between real namespaces, through the switch. Each node is this test's own program,
//! started again in its namespace to pass datagrams on.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::super::plan::Direction;
use super::*;

const NAME: &str = "packets_between_namespaces_are_really_late_and_really_lost";
/// Set for what runs in a namespace: where it listens and, after a comma, where it passes on to.
const ROLE: &str = "CUELIGHT_TEST_DATAGRAMS";

/// For packets that must come back.
const LONG: Duration = Duration::from_secs(10);
/// For packets that must not.
const SHORT: Duration = Duration::from_millis(300);

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends every datagram back, or on to `next`, and what comes from there back.
fn pass_on(at: SocketAddr, next: Option<SocketAddr>) {
    let socket = UdpSocket::bind(at).unwrap();
    let (mut buffer, mut client) = ([0; 64], at);
    loop {
        let (bytes, from) = socket.recv_from(&mut buffer).unwrap();
        let to = match next {
            Some(next) if next != from => {
                client = from;
                next
            }
            Some(_) => client,
            None => from,
        };
        let _ = socket.send_to(&buffer[..bytes], to);
    }
}

fn start(net: &Net, node: usize, next: Option<usize>) -> (SocketAddr, Running) {
    let at = |node| SocketAddr::new(net.address(node), 7000);
    let next = next.map_or(String::new(), |next| at(next).to_string());
    let test = module_path!().split_once("::").unwrap().1;
    let child = Command::new("ip")
        .args(["netns", "exec", &net.namespace(node)])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{test}::{NAME}"), "--nocapture"])
        .env(ROLE, format!("{},{next}", at(node)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    (at(node), Running(child.unwrap()))
}

/// Sends `count` datagrams, one each millisecond, and returns how long each took that came back. Waits
/// for them, if they are late, until `patience` has passed since the last one was sent.
fn ask(to: SocketAddr, count: u8, patience: Duration) -> Vec<Duration> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut sent = Vec::new();
    let mut back = Vec::new();
    let mut buffer = [0; 64];
    let mut last = Instant::now();
    let count = usize::from(count);
    while sent.len() < count || (back.len() < count && last.elapsed() < patience) {
        if sent.len() < count {
            last = Instant::now();
            let _ = socket.send(&[sent.len() as u8]); // refused as long as nobody listens
            sent.push(last);
        }
        while socket.recv(&mut buffer).is_ok() {
            back.push(sent[usize::from(buffer[0])].elapsed());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    back
}

#[test]
fn packets_between_namespaces_are_really_late_and_really_lost() {
    if let Ok(role) = std::env::var(ROLE) {
        let (at, next) = role.split_once(',').unwrap();
        pass_on(at.parse().unwrap(), next.parse().ok());
    }
    let has_ip = Command::new("ip").arg("netns").output().is_ok_and(|done| done.status.success());
    if !rustix::process::geteuid().is_root() || !has_ip || !Path::new(ffi::DEVICE).exists() {
        eprintln!(
            "NOT TESTED: the switch of `cuelight chaos`: needs root, `ip` and {}",
            ffi::DEVICE
        );
        return;
    }
    let net = Net::up(2, Some(Wires::Switch), 3).unwrap();
    let (far, _far) = start(&net, 1, None);
    let (near, _near) = start(&net, 0, Some(1));
    let began = Instant::now();
    while ask(near, 1, SHORT).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing passes");
    }
    let all = |back: &[Duration]| (back.len(), back.iter().min().copied().unwrap_or_default());
    assert_eq!(all(&ask(near, 50, LONG)).0, 50, "without a fault");

    // There and back; the way between the host and the node is spared.
    let delay = Shape::Delay { by_ms: 60, jitter_ms: 10 };
    net.shape(0, delay, true).unwrap();
    let (count, least) = all(&ask(near, 50, LONG));
    assert!(count == 50 && least >= Duration::from_millis(100), "{count} in at least {least:?}");
    net.shape(1, delay, false).unwrap();
    let (count, least) = all(&ask(near, 20, LONG));
    assert!(count == 20 && least >= Duration::from_millis(200), "{count} in at least {least:?}");
    net.clear(0);
    net.clear(1);

    net.shape(0, Shape::Loss { percent: 20 }, true).unwrap();
    let count = ask(near, 200, Duration::from_secs(2)).len(); // four in five of four in five
    assert!((100..=156).contains(&count), "{count} of 200 came back");
    for (direction, spares_host) in
        [(Direction::Both, true), (Direction::Out, true), (Direction::In, false)]
    {
        net.shape(0, Shape::Drop(direction), spares_host).unwrap();
        assert_eq!(ask(near, 5, SHORT).len(), 0, "{direction:?}");
        assert_eq!(ask(far, 5, LONG).len(), 5, "others are not hit");
        net.clear(0);
        assert_eq!(ask(near, 5, LONG).len(), 5, "{direction:?} is over");
    }
}
