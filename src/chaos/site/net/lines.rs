//! Which packet leaves when: the queues of a switch between nodes, as a plain function of the packets
//! and the time. Every node has two lines, one for each direction; a packet goes through the line of
//! its sender, then through the one of its receiver. A line without a fault lets it pass at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::super::plan::Direction;
use super::super::super::random::Draw;
use super::Shape;

/// Packets that may wait in one line, those of a delay; more are lost.
const MOST_WAITING: usize = 4096;
/// A narrow line is full when it has what it carries in this time, and a little.
const MOST_LATE: Duration = Duration::from_millis(400);
const LITTLE_BYTES: usize = 3200;
/// The stream of random numbers; the schedule and the load have their own.
const LOSSES: u64 = 3 << 32;

/// Where packets come from and go to: a node by its number, or the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Node(usize),
    Host,
}

/// From where to where.
pub(super) type Way = (Port, Port);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on now.
    Passes,
    /// It was copied, and goes on later.
    Waits,
    Lost,
}

/// The lines of all nodes.
#[derive(Debug)]
pub(super) struct Lines {
    /// For each node: what it sends, what it is sent.
    nodes: Vec<[Line; 2]>,
    draw: Draw,
}

#[derive(Debug, Default)]
struct Line {
    fault: Option<Fault>,
    /// In the order in which they came, which is the one in which they leave.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// When a narrow line has carried all that came so far.
    free_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    shape: Shape,
    /// Packets from and to the host are spared.
    spares_host: bool,
}

#[derive(Debug)]
struct Waiting {
    leaves: Instant,
    way: Way,
    packet: Vec<u8>,
}

const OUT: usize = 0;
const IN: usize = 1;

impl Lines {
    /// Of so many nodes. The seed decides which packets are lost and how late each is.
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        let nodes = (0..nodes).map(|_| <[Line; 2]>::default()).collect();
        Self { nodes, draw: Draw::new(seed, LOSSES) }
    }

    /// A node's packets are shaped from now on; with `spares_host` only those from and to nodes.
    pub(super) fn shape(&mut self, node: usize, shape: Shape, spares_host: bool) {
        let fault = Some(Fault { shape, spares_host });
        let [out, into] = &mut self.nodes[node];
        if shape != Shape::Drop(Direction::In) {
            out.fault = fault;
        }
        if shape != Shape::Drop(Direction::Out) {
            into.fault = fault;
        }
    }

    /// All of a node's packets pass again, those that waited first.
    pub(super) fn clear(&mut self, node: usize, now: Instant) {
        for line in &mut self.nodes[node] {
            (line.fault, line.free_at) = (None, None);
            line.waiting.iter_mut().for_each(|waiting| waiting.leaves = now);
        }
    }

    /// Whether any line has a fault.
    pub(super) fn has_fault(&self) -> bool {
        self.nodes.iter().flatten().any(|line| line.fault.is_some())
    }

    /// Takes a packet on its way.
    pub(super) fn take(&mut self, now: Instant, way: Way, packet: &[u8]) -> Fate {
        self.go(now, way, packet, OUT)
    }

    /// Through the lines of the way, from the one of this direction on.
    fn go(&mut self, now: Instant, way: Way, packet: &[u8], first: usize) -> Fate {
        let by_host = way.0 == Port::Host || way.1 == Port::Host;
        for (direction, port) in [(OUT, way.0), (IN, way.1)].into_iter().skip(first) {
            let Port::Node(node) = port else { continue };
            let line = &mut self.nodes[node][direction];
            if by_host && line.fault.is_some_and(|fault| fault.spares_host) {
                continue;
            }
            match line.leaves(now, packet.len(), &mut self.draw) {
                None => return Fate::Lost,
                Some(leaves) if leaves <= now && line.waiting.is_empty() => {}
                Some(leaves) => {
                    line.waiting_bytes += packet.len();
                    line.waiting.push_back(Waiting { leaves, way, packet: packet.to_vec() });
                    return Fate::Waits;
                }
            }
        }
        Fate::Passes
    }

    /// Hands out the packets whose time has come.
    pub(super) fn due(&mut self, now: Instant, mut out: impl FnMut(Port, &[u8])) {
        // What leaves its sender's line may have to wait in its receiver's.
        for direction in [OUT, IN] {
            for node in 0..self.nodes.len() {
                while let Some(waiting) = self.nodes[node][direction].pop(now) {
                    let Waiting { leaves, way, packet } = waiting;
                    if self.go(leaves, way, &packet, direction + 1) == Fate::Passes {
                        out(way.1, &packet);
                    }
                }
            }
        }
    }

    /// When the next packet leaves; `None` if none waits.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let lines = self.nodes.iter().flatten();
        lines.filter_map(|line| line.waiting.front()).map(|waiting| waiting.leaves).min()
    }
}

impl Line {
    /// When a packet of this size that comes now leaves the line; `None` if it is lost.
    fn leaves(&mut self, now: Instant, bytes: usize, draw: &mut Draw) -> Option<Instant> {
        if self.waiting.len() >= MOST_WAITING {
            return None;
        }
        let last = self.waiting.back().map_or(now, |last| last.leaves.max(now));
        match self.fault.map(|fault| fault.shape) {
            None => Some(last),
            Some(Shape::Drop(_)) => None,
            Some(Shape::Loss { percent }) => (draw.below(100) as u64 >= percent).then_some(last),
            Some(Shape::Delay { by_ms, jitter_ms }) => {
                let least = by_ms.saturating_sub(jitter_ms);
                let late =
                    Duration::from_micros(draw.between(least * 1000, (by_ms + jitter_ms) * 1000));
                Some(last.max(now + late))
            }
            Some(Shape::Rate { kbit }) => {
                // A kilobit a second is a bit a millisecond.
                let most = kbit as usize * MOST_LATE.as_millis() as usize / 8 + LITTLE_BYTES;
                if self.waiting_bytes + bytes > most {
                    return None;
                }
                let takes = Duration::from_micros(bytes as u64 * 8000 / kbit.max(1));
                let free_at = self.free_at.map_or(now, |free_at| free_at.max(now)) + takes;
                self.free_at = Some(free_at);
                Some(last.max(free_at))
            }
        }
    }

    fn pop(&mut self, now: Instant) -> Option<Waiting> {
        self.waiting.front().filter(|waiting| waiting.leaves <= now)?;
        let due = self.waiting.pop_front()?;
        self.waiting_bytes -= due.packet.len();
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_TO_B: Way = (Port::Node(0), Port::Node(1));
    const HOST_TO_A: Way = (Port::Host, Port::Node(0));

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// When each packet that came to B left, in milliseconds, and its first byte.
    fn all(lines: &mut Lines, zero: Instant) -> Vec<(u64, u8)> {
        let mut left = Vec::new();
        while let Some(next) = lines.next_due() {
            let at = (next - zero).as_millis() as u64;
            lines.due(next, |to, packet| {
                assert_eq!(to, Port::Node(1));
                left.push((at, packet[0]));
            });
        }
        left
    }

    #[test]
    fn without_a_fault_a_packet_passes_at_once() {
        let (mut lines, now) = (Lines::new(2, 1), Instant::now());
        for way in [A_TO_B, HOST_TO_A, (Port::Node(1), Port::Host)] {
            assert_eq!(lines.take(now, way, &[1; 1500]), Fate::Passes, "{way:?}");
        }
        assert_eq!(lines.next_due(), None);
    }

    #[test]
    fn a_partition_takes_its_direction_and_spares_the_host_if_told() {
        let now = Instant::now();
        // (direction, whether it spares the host, whether A to B, B to A and the host to A pass)
        let cases = [
            (Direction::Both, false, [false, false, false]),
            (Direction::Both, true, [false, false, true]),
            (Direction::Out, false, [false, true, true]),
            (Direction::In, false, [true, false, false]),
            (Direction::In, true, [true, false, true]),
        ];
        for (direction, spares, expected) in cases {
            let mut lines = Lines::new(3, 1);
            lines.shape(0, Shape::Drop(direction), spares);
            let ways = [A_TO_B, (A_TO_B.1, A_TO_B.0), HOST_TO_A];
            let passes = ways.map(|way| lines.take(now, way, &[0]) == Fate::Passes);
            assert_eq!(passes, expected, "{direction:?} {spares}");
            let others = (Port::Node(1), Port::Node(2));
            assert_eq!(lines.take(now, others, &[0]), Fate::Passes);
            lines.clear(0, now);
            assert!(ways.iter().all(|way| lines.take(now, *way, &[0]) == Fate::Passes));
        }
    }

    #[test]
    fn packets_are_late_by_what_was_asked_for_and_keep_their_order() {
        let zero = Instant::now();
        let mut lines = Lines::new(2, 7);
        lines.shape(0, Shape::Delay { by_ms: 100, jitter_ms: 30 }, false);
        for number in 0..100 {
            let at = zero + ms(u64::from(number));
            assert_eq!(lines.take(at, A_TO_B, &[number]), Fate::Waits);
        }
        let left = all(&mut lines, zero);
        assert_eq!(left.len(), 100);
        assert!(left.is_sorted(), "{left:?}");
        let late: Vec<_> = left.iter().map(|(at, number)| at - u64::from(*number)).collect();
        assert!(late.iter().all(|late| (70..=130).contains(late)), "{late:?}");
        assert!(late.iter().max().unwrap() - late.iter().min().unwrap() > 10, "{late:?}");
    }

    #[test]
    fn two_lines_add_up() {
        let zero = Instant::now();
        let mut lines = Lines::new(2, 1);
        lines.shape(0, Shape::Delay { by_ms: 50, jitter_ms: 0 }, false);
        lines.shape(1, Shape::Delay { by_ms: 20, jitter_ms: 0 }, false);
        assert_eq!(lines.take(zero, A_TO_B, &[9]), Fate::Waits);
        assert_eq!(all(&mut lines, zero), [(70, 9)]);
    }

    #[test]
    fn as_many_packets_are_lost_as_was_asked_for_and_the_same_ones_by_the_same_seed() {
        let lost = |seed| {
            let (mut lines, now) = (Lines::new(2, seed), Instant::now());
            lines.shape(1, Shape::Loss { percent: 20 }, false);
            let fates = (0..5000).map(|_| lines.take(now, A_TO_B, &[0]));
            fates.map(|fate| fate == Fate::Lost).collect::<Vec<_>>()
        };
        let first = lost(1);
        assert!((900..1100).contains(&first.iter().filter(|lost| **lost).count()));
        assert_eq!(first, lost(1));
        assert_ne!(first, lost(2));
    }

    #[test]
    fn a_narrow_line_carries_its_rate_and_holds_a_bounded_queue() {
        let zero = Instant::now();
        let mut lines = Lines::new(2, 1);
        lines.shape(0, Shape::Rate { kbit: 80 }, false); // 1,000 bytes in 100 ms
        let fates: Vec<_> = (0..20).map(|n| lines.take(zero, A_TO_B, &[n; 1000])).collect();
        let waits = fates.iter().filter(|fate| **fate == Fate::Waits).count();
        assert_eq!(
            (waits, fates[6], fates[7]),
            (7, Fate::Waits, Fate::Lost),
            "4,000 + 3,200 bytes"
        );
        let left = all(&mut lines, zero);
        assert_eq!(left, (0..7).map(|n| (100 * (u64::from(n) + 1), n)).collect::<Vec<_>>());
        // What has left makes room.
        assert_eq!(lines.take(zero + ms(2000), A_TO_B, &[1; 1000]), Fate::Waits);
        assert_eq!(all(&mut lines, zero), [(2100, 1)]);
    }

    #[test]
    fn what_waits_leaves_at_once_and_first_when_the_fault_ends() {
        let zero = Instant::now();
        let mut lines = Lines::new(2, 1);
        lines.shape(0, Shape::Delay { by_ms: 200, jitter_ms: 0 }, false);
        lines.take(zero, A_TO_B, &[1]);
        lines.clear(0, zero + ms(5));
        assert_eq!(lines.take(zero + ms(5), A_TO_B, &[2]), Fate::Waits, "not before the first");
        assert_eq!(all(&mut lines, zero), [(5, 1), (5, 2)]);
        assert_eq!(lines.take(zero + ms(6), A_TO_B, &[3]), Fate::Passes);
    }

    #[test]
    fn a_line_holds_no_more_than_it_may() {
        let zero = Instant::now();
        let mut lines = Lines::new(2, 1);
        lines.shape(0, Shape::Delay { by_ms: 200, jitter_ms: 0 }, false);
        let lost = (0..MOST_WAITING + 3).filter(|_| lines.take(zero, A_TO_B, &[1]) == Fate::Lost);
        assert_eq!(lost.count(), 3);
        assert_eq!(all(&mut lines, zero).len(), MOST_WAITING);
    }
}
