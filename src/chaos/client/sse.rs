//! Server-sent events out of bytes, however the network cuts them.

/// Largest event that is taken.
const LARGEST: usize = 4 << 20;

/// Gathers bytes into the `data` of events.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes bytes and hands out each event that is now complete.
    ///
    /// # Errors
    /// What is wrong with the stream.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(&str),
    ) -> Result<(), &'static str> {
        let mut looked_at = self.pending.len().saturating_sub(1);
        self.pending.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(at) = end_of_event(&self.pending[looked_at.max(taken)..]) {
            let end = looked_at.max(taken) + at;
            let text = std::str::from_utf8(&self.pending[taken..end]);
            let text = text.map_err(|_| "an event is not UTF-8")?;
            event(&data(text)?);
            taken = end + 2;
            looked_at = taken;
        }
        self.pending.drain(..taken);
        if self.pending.len() > LARGEST {
            return Err("an event has no end within 4 MiB");
        }
        Ok(())
    }

    /// What is left when the stream has ended: part of an event.
    pub(crate) fn left(&self) -> usize {
        self.pending.len()
    }
}

fn end_of_event(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n")
}

/// The data lines of one event, joined.
fn data(event: &str) -> Result<String, &'static str> {
    let mut data: Option<String> = None;
    for line in event.lines() {
        if line.starts_with(':') || line.starts_with("event:") {
            continue;
        }
        let Some(value) = line.strip_prefix("data:") else {
            return Err("a line of an event is neither data nor a comment");
        };
        let value = value.strip_prefix(' ').unwrap_or(value);
        match &mut data {
            Some(data) => data.extend(["\n", value]),
            None => data = Some(value.to_owned()),
        }
    }
    data.ok_or("an event has no data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_wherever_the_reads_are_cut() {
        let bytes = "data: {\"a\":1}\n\n: note\nevent: error\ndata:ü\ndata: b\n\ndata: [DONE]\n\n";
        for size in 1..=bytes.len() {
            let (mut lines, mut events) = (Lines::default(), Vec::new());
            for part in bytes.as_bytes().chunks(size) {
                lines.feed(part, |event| events.push(event.to_owned())).unwrap();
            }
            assert_eq!(events, ["{\"a\":1}", "ü\nb", "[DONE]"], "reads of {size}");
            assert_eq!(lines.left(), 0);
        }
    }

    #[test]
    fn what_is_no_event_is_refused_and_half_of_one_is_left() {
        let feed = |bytes: &[u8]| Lines::default().feed(bytes, |_| {});
        assert_eq!(feed(b"hello\n\n"), Err("a line of an event is neither data nor a comment"));
        assert_eq!(feed(b": only a comment\n\n"), Err("an event has no data"));
        assert_eq!(feed(b"data: \xff\n\n"), Err("an event is not UTF-8"));
        let mut lines = Lines::default();
        lines.feed(b"data: 1\n\ndata: 2", |event| assert_eq!(event, "1")).unwrap();
        assert_eq!(lines.left(), 7);
    }
}
