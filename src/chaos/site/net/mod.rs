//! A network namespace for each node, so that packets between nodes can be lost, late or few. The
//! kernel joins them by a bridge and shapes packets (`tc`); where it cannot delay them, or those of a
//! front end's clients must be spared, a switch in this process does both. Needs root; everything is
//! removed when the value is dropped, and what a killed run left is removed by the next one.

mod ffi;
mod lines;
#[cfg(test)]
mod space_tests;
mod switch;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::plan::Direction;
use super::super::{ChaosError, Wires};
use lines::Port;
use switch::{Device, Switch};

/// Bytes of a packet. As on a real network: of larger ones a loss takes too much at once, and a
/// narrow line carries none in time.
const MTU: u32 = 1500;

/// What happens to a node's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Drop(Direction),
    Delay { by_ms: u64, jitter_ms: u64 },
    Loss { percent: u64 },
    Rate { kbit: u64 },
}

/// The networks of one run.
#[derive(Debug)]
pub(crate) struct Net {
    names: Names,
    nodes: usize,
    netem: bool,
    /// With [`Wires::Switch`].
    switch: Option<Switch>,
}

/// The names of one run; they tell which process made them.
#[derive(Clone, Copy, Debug)]
struct Names(u32);

/// One command line.
type Line = Vec<String>;

fn line(text: &str) -> Line {
    text.split(' ').map(str::to_owned).collect()
}

impl Names {
    const PREFIX: &str = "cuechaos-";

    fn namespace(self, node: usize) -> String {
        format!("{}{}-{node}", Self::PREFIX, self.0)
    }

    /// The bridge, or the host's device. At most 15 characters, as the kernel wants it.
    fn bridge(self) -> String {
        format!("cc{}br", self.0)
    }

    /// The bridge's end of a node's wire, or what becomes the node's device.
    fn wire(self, node: usize) -> String {
        format!("cc{}h{node}", self.0)
    }

    /// The host's address has the number 254, the nodes count from 1.
    fn address(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, (self.0 % 250) as u8, number)
    }

    fn of_node(self, node: usize) -> Ipv4Addr {
        self.address(node as u8 + 1)
    }

    /// For the host, whose device is there with the switch.
    fn up_host(self, wires: Wires) -> Vec<Line> {
        let (bridge, host) = (self.bridge(), self.address(254));
        let made = match wires {
            Wires::Veth => format!("ip link add {bridge} type bridge"),
            Wires::Switch => format!("ip link set {bridge} mtu {MTU}"),
        };
        vec![
            line(&made),
            line(&format!("ip addr add {host}/24 dev {bridge}")),
            line(&format!("ip link set {bridge} up")),
        ]
    }

    /// For a node, whose device is there with the switch, under the wire's name.
    fn up_node(self, wires: Wires, node: usize) -> Vec<Line> {
        let (space, wire, address) = (self.namespace(node), self.wire(node), self.of_node(node));
        let joined = match wires {
            Wires::Veth => vec![
                line(&format!("ip link add {wire} type veth peer name eth0 netns {space}")),
                line(&format!("ip link set {wire} master {} up", self.bridge())),
            ],
            Wires::Switch => {
                vec![line(&format!("ip link set {wire} mtu {MTU} netns {space} name eth0"))]
            }
        };
        let mut lines = vec![line(&format!("ip netns add {space}"))];
        lines.extend(joined);
        lines.extend([
            line(&format!("ip -n {space} addr add {address}/24 dev eth0")),
            line(&format!("ip -n {space} link set eth0 up")),
            line(&format!("ip -n {space} link set lo up")),
        ]);
        lines
    }

    fn down(self, nodes: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        for node in 0..nodes {
            lines.push(line(&format!("ip link del {}", self.wire(node))));
            lines.push(line(&format!("ip netns del {}", self.namespace(node))));
        }
        lines.push(line(&format!("ip link del {}", self.bridge())));
        lines
    }

    /// The commands that shape a node's packets; a queue shapes what leaves its interface.
    fn shape(self, node: usize, shape: Shape) -> Vec<Line> {
        let queue = match shape {
            Shape::Drop(_) => "blackhole".to_owned(),
            Shape::Delay { by_ms, jitter_ms } => format!("netem delay {by_ms}ms {jitter_ms}ms"),
            Shape::Loss { percent } => format!("netem loss {percent}%"),
            Shape::Rate { kbit } => format!("tbf rate {kbit}kbit burst 3200 latency 400ms"),
        };
        let out = format!("tc -n {} qdisc replace dev eth0 root {queue}", self.namespace(node));
        let into = format!("tc qdisc replace dev {} root {queue}", self.wire(node));
        match shape {
            Shape::Drop(Direction::Out) => vec![line(&out)],
            Shape::Drop(Direction::In) => vec![line(&into)],
            _ => vec![line(&out), line(&into)],
        }
    }

    /// There is nothing to remove on a side that was not shaped, so these may fail.
    fn clear(self, node: usize) -> Vec<Line> {
        vec![
            line(&format!("tc -n {} qdisc del dev eth0 root", self.namespace(node))),
            line(&format!("tc qdisc del dev {} root", self.wire(node))),
        ]
    }
}

impl Net {
    /// Makes the namespaces, joined as wanted: without a wish by the kernel if it has netem, or if
    /// there is no TUN device. `seed` decides what is lost.
    ///
    /// # Errors
    /// Not root, no `ip`, or a kernel that does not do it.
    pub(crate) fn up(nodes: usize, wires: Option<Wires>, seed: u64) -> Result<Self, ChaosError> {
        if nodes > 200 {
            return Err(ChaosError::Net(format!("{nodes} nodes; it has room for 200")));
        }
        remove_stale();
        let names = Names(std::process::id());
        let netem = wires != Some(Wires::Switch) && has_netem(names);
        let without_tun = || !Path::new(ffi::DEVICE).exists();
        let wires = wires.unwrap_or(match netem || without_tun() {
            true => Wires::Veth,
            false => Wires::Switch,
        });
        // From here on dropping it removes what is there.
        let mut net = Self { names, nodes, netem, switch: None };
        let mut devices = Vec::new();
        let mut device = |name: String, address, port| -> Result<(), ChaosError> {
            if wires == Wires::Switch {
                let file = ffi::tun(&name);
                let file =
                    file.map_err(|why| net_error(&format!("{} {name}", ffi::DEVICE), &why))?;
                devices.push(Device { file, address, port });
            }
            Ok(())
        };
        device(names.bridge(), names.address(254), Port::Host)?;
        run_all(&names.up_host(wires))?;
        for node in 0..nodes {
            device(names.wire(node), names.of_node(node), Port::Node(node))?;
            run_all(&names.up_node(wires, node))?;
        }
        if wires == Wires::Switch {
            let switch = Switch::start(devices, seed);
            net.switch = Some(switch.map_err(|why| net_error("the switch", &why))?);
        }
        Ok(net)
    }

    /// A node's namespace.
    pub(crate) fn namespace(&self, node: usize) -> String {
        self.names.namespace(node)
    }

    /// A node's address.
    pub(crate) fn address(&self, node: usize) -> IpAddr {
        self.names.of_node(node).into()
    }

    /// The host's address, which every node reaches.
    pub(crate) fn host(&self) -> IpAddr {
        self.names.address(254).into()
    }

    /// Whether packets can be delayed, and some be lost.
    pub(crate) fn can_delay(&self) -> bool {
        self.netem || self.switch.is_some()
    }

    /// Whether packets from and to the host can be spared.
    pub(crate) fn can_spare_host(&self) -> bool {
        self.switch.is_some()
    }

    /// Shapes a node's packets from now on, with `spares_host` only those between nodes.
    ///
    /// # Errors
    /// The kernel cannot do it.
    pub(crate) fn shape(&self, node: usize, shape: Shape, spares_host: bool) -> Result<(), String> {
        match &self.switch {
            Some(switch) => {
                let shaped = switch.shape(node, shape, spares_host);
                shaped.map_err(|why| format!("the switch: {why}"))?;
            }
            None if spares_host => return Err("only the switch can spare clients".to_owned()),
            None => self.names.shape(node, shape).iter().try_for_each(run)?,
        }
        Ok(())
    }

    /// Lets all of a node's packets pass again.
    pub(crate) fn clear(&self, node: usize) {
        match &self.switch {
            Some(switch) => switch.clear(node),
            None => self.names.clear(node).iter().for_each(|line| drop(run(line))),
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.switch = None; // and with it its devices
        for line in self.names.down(self.nodes) {
            let _ = run(&line); // what was not made cannot be removed
        }
    }
}

fn net_error(what: &str, why: &std::io::Error) -> ChaosError {
    ChaosError::Net(format!("{what}: {why}"))
}

fn run_all(lines: &[Line]) -> Result<(), ChaosError> {
    lines.iter().try_for_each(run).map_err(ChaosError::Net)
}

fn run(line: &Line) -> Result<(), String> {
    let (program, args) = line.split_first().ok_or("an empty command")?;
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{}`: {}", line.join(" "), why.trim()))
}

/// Removes the namespaces of runs whose process is gone.
fn remove_stale() {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for (names, node) in text.lines().filter_map(made_by) {
        if !Path::new(&format!("/proc/{}", names.0)).exists() {
            let _ = run(&line(&format!("ip link del {}", names.wire(node))));
            let _ = run(&line(&format!("ip netns del {}", names.namespace(node))));
            let _ = run(&line(&format!("ip link del {}", names.bridge())));
        }
    }
}

/// Which run made the namespace in this line of `ip netns list`, for which node.
fn made_by(line: &str) -> Option<(Names, usize)> {
    let name = line.split(' ').next()?.strip_prefix(Names::PREFIX)?;
    let (run, node) = name.split_once('-')?;
    Some((Names(run.parse().ok()?), node.parse().ok()?))
}

/// Whether this kernel can delay and lose packets, tried out in a namespace that is then removed.
fn has_netem(names: Names) -> bool {
    let space = names.namespace(0);
    let possible = run(&line(&format!("ip netns add {space}")))
        .and_then(|()| run(&line(&format!("tc -n {space} qdisc add dev lo root netem delay 1ms"))));
    let _ = run(&line(&format!("ip netns del {space}")));
    possible.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_removed_and_names_fit_the_kernel() {
        let names = Names(4_194_304);
        let words = |lines: Vec<Line>| lines.into_iter().flatten().collect::<Vec<_>>();
        let down = words(names.down(2));
        for node in 0..2 {
            assert!(down.contains(&names.namespace(node)) && down.contains(&names.wire(node)));
        }
        assert!(down.contains(&names.bridge()));
        assert!(names.wire(199).len() <= 15 && names.bridge().len() <= 15);
        let made = |node| made_by(&format!("{} (id: 3)", names.namespace(node))).unwrap();
        assert_eq!((made(1).0.0, made(1).1), (4_194_304, 1));
        assert!(made_by("other-1-2").is_none());
    }

    #[test]
    fn a_partition_takes_the_side_that_it_names() {
        let sides = |direction| {
            let lines = Names(9).shape(1, Shape::Drop(direction));
            lines.iter().map(|line| line[1] == "-n").collect::<Vec<_>>()
        };
        assert_eq!(sides(Direction::Out), [true]);
        assert_eq!(sides(Direction::In), [false]);
        assert_eq!(sides(Direction::Both), [true, false]);
    }
}
