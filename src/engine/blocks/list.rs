//! The free blocks in the order they will be reused: an intrusive list, every operation O(1).

/// Links of all blocks; index `blocks` is the sentinel that closes the ring.
#[derive(Clone, Debug)]
pub(super) struct FreeList {
    links: Vec<Link>,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

impl FreeList {
    /// A list of no blocks, with room for ids `0..blocks`.
    pub(super) fn new(blocks: u32) -> Self {
        let links = (0..=blocks).map(|i| Link { prev: i, next: i }).collect();
        Self { links, len: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    fn sentinel(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    /// Puts a block where it is reused first: nobody can find it any more.
    pub(super) fn push_front(&mut self, block: u32) {
        self.insert_after(self.sentinel(), block);
    }

    /// Puts a block where it is reused last.
    pub(super) fn push_back(&mut self, block: u32) {
        self.insert_after(self.links[self.sentinel() as usize].prev, block);
    }

    fn insert_after(&mut self, prev: u32, block: u32) {
        let next = self.links[prev as usize].next;
        self.links[block as usize] = Link { prev, next };
        self.links[prev as usize].next = block;
        self.links[next as usize].prev = block;
        self.len += 1;
    }

    /// Takes a block out; it must be in the list.
    pub(super) fn remove(&mut self, block: u32) {
        let Link { prev, next } = self.links[block as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.len -= 1;
    }

    /// Takes out the block to reuse next.
    pub(super) fn pop_front(&mut self) -> Option<u32> {
        let first = self.links[self.sentinel() as usize].next;
        (first != self.sentinel()).then(|| {
            self.remove(first);
            first
        })
    }

    /// The free blocks, the one to reuse next first; stops after `len` so that a broken ring ends.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let first = self.links[self.sentinel() as usize].next;
        std::iter::successors(Some(first), |&block| Some(self.links[block as usize].next))
            .take_while(|&block| block != self.sentinel())
            .take(self.len as usize + 1)
    }
}
