//! Device buffers.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use super::driver::{Address, Driver};
use crate::device::{DeviceError, Storage, View, ViewMut};

/// A buffer of `E` in device memory; it is given back when dropped.
#[derive(Debug)]
pub struct Buffer<E> {
    driver: Arc<dyn Driver>,
    address: Address,
    len: usize,
    element: PhantomData<fn() -> E>,
}

impl<E: Pod> Buffer<E> {
    /// Zeroed memory for `len` elements.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Self, DeviceError> {
        // An empty buffer has an address too: views of it may be passed on, and must not look absent.
        let address = driver.allocate((len * size_of::<E>()).max(1))?;
        Ok(Self { driver: driver.clone(), address, len, element: PhantomData })
    }

    /// Address of the first element.
    pub fn address(&self) -> Address {
        self.address
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

impl<E: Pod> Storage for Buffer<E> {
    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> u64 {
        self.address
    }
}

/// Where a view's first element lies.
pub trait Located {
    /// Its device address.
    fn address(&self) -> Address;
}

impl<E: Pod> Located for View<'_, Buffer<E>> {
    fn address(&self) -> Address {
        self.buffer.address + (self.start * size_of::<E>()) as u64
    }
}

impl<E: Pod> Located for ViewMut<'_, Buffer<E>> {
    fn address(&self) -> Address {
        self.buffer.address + (self.start * size_of::<E>()) as u64
    }
}

/// Address of an optional view, 0 where it is absent.
pub fn address_or_null<L: Located>(view: Option<&L>) -> Address {
    view.map_or(0, Located::address)
}
