//! Views: a contiguous part of a device buffer. Bounds are checked where a view is made, so that no operation needs to.

use std::ops::Range;

/// A device buffer of which only the length is known on the host.
pub trait Storage: Send + Sync {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Where it lies, to tell buffers apart: what was queued for one buffer holds for a later one in its place.
    fn place(&self) -> u64;

    /// Whether it has no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it.
    fn all(&self) -> View<'_, Self>
    where
        Self: Sized,
    {
        self.part(0..self.len())
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// When the range ends behind the buffer: a mistake in the caller.
    fn part(&self, range: Range<usize>) -> View<'_, Self>
    where
        Self: Sized,
    {
        check(&range, self.len());
        View { buffer: self, start: range.start, len: range.len() }
    }

    /// All of it, writable.
    fn all_mut(&mut self) -> ViewMut<'_, Self>
    where
        Self: Sized,
    {
        let len = self.len();
        self.part_mut(0..len)
    }

    /// The elements of `range`, writable.
    ///
    /// # Panics
    /// When the range ends behind the buffer: a mistake in the caller.
    fn part_mut(&mut self, range: Range<usize>) -> ViewMut<'_, Self>
    where
        Self: Sized,
    {
        check(&range, self.len());
        ViewMut { start: range.start, len: range.len(), buffer: self }
    }
}

fn check(range: &Range<usize>, len: usize) {
    assert!(range.start <= range.end && range.end <= len, "view {range:?} of a buffer of {len} elements");
}

/// Read access to a part of a device buffer.
#[derive(Debug)]
pub struct View<'a, S> {
    /// The buffer.
    pub buffer: &'a S,
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl<S> Clone for View<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for View<'_, S> {}

impl<S> View<'_, S> {
    /// The elements this view covers.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Write access to a part of a device buffer.
#[derive(Debug)]
pub struct ViewMut<'a, S> {
    /// The buffer.
    pub buffer: &'a mut S,
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl<S> ViewMut<'_, S> {
    /// The elements this view covers.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

impl<'a, S: Storage> From<&'a S> for View<'a, S> {
    fn from(buffer: &'a S) -> Self {
        buffer.all()
    }
}

impl<'a, S: Storage> From<&'a mut S> for ViewMut<'a, S> {
    fn from(buffer: &'a mut S) -> Self {
        buffer.all_mut()
    }
}
