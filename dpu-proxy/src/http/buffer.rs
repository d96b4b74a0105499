//! `Input`: what was read from a connection and not yet used. Idle connections hold no memory: their
//! buffers go back to a store of this thread.

use std::cell::RefCell;

/// What one read asks for, until a connection shows that it carries bulk.
const SMALL: usize = 16 * 1024;
const LARGE: usize = 128 * 1024;
/// Buffers that a thread keeps for later.
const MAX_SPARE: usize = 256;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not yet used.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// True while it holds memory.
    pub fn is_allocated(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Uses the first `count` bytes up.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "no more is used than there is");
    }

    /// Room behind the bytes, at least one byte.
    pub fn space(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SMALL]);
        }
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.bytes.len() {
            self.make_room();
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were put into `space`.
    pub fn filled(&mut self, count: usize) {
        let was_whole = self.end == 0 && count == self.bytes.len();
        self.end += count;
        if was_whole && count < LARGE {
            self.bytes.resize(LARGE, 0);
        }
    }

    /// Gives the memory back when nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() && self.is_allocated() {
            (self.start, self.end) = (0, 0);
            give_back(std::mem::take(&mut self.bytes));
        }
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if self.is_allocated() {
            give_back(std::mem::take(&mut self.bytes));
        }
    }
}

fn give_back(bytes: Vec<u8>) {
    // A thread that ends has no store any more.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < MAX_SPARE && bytes.len() <= LARGE {
            spare.push(bytes);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_in_order_while_the_buffer_moves_and_grows() {
        let mut input = Input::default();
        let mut expected = Vec::new();
        for round in 0..200usize {
            let space = input.space();
            let count = space.len().min(1000);
            space[..count].fill(round as u8);
            input.filled(count);
            expected.extend(std::iter::repeat_n(round as u8, count));
            let used = input.bytes().len().min(700);
            assert_eq!(input.bytes()[..used], expected[..used]);
            input.consume(used);
            expected.drain(..used);
        }
        assert_eq!(input.bytes(), expected);
    }

    #[test]
    fn an_empty_buffer_holds_no_memory_after_release() {
        let mut input = Input::default();
        input.space()[0] = 1;
        input.filled(1);
        input.release();
        assert!(input.is_allocated(), "a byte is in it");
        input.consume(1);
        input.release();
        assert!(!input.is_allocated());
    }
}
