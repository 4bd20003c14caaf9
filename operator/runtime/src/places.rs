//! Places that nobody can take all of: counted in all and by source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Who has a place, by source. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Places {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    in_all: usize,
    of_one: usize,
}

impl Places {
    /// So many in all, and for one source.
    pub fn new(in_all: usize, of_one: usize) -> Self {
        Self { taken: Arc::default(), in_all, of_one }
    }

    /// A place, if one is left.
    pub fn enter(&self, source: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let of_one = taken.get(&source).copied().unwrap_or_default();
        if all >= self.in_all || of_one >= self.of_one {
            return None;
        }
        taken.insert(source, of_one + 1);
        Some(Place { places: self.clone(), source })
    }
}

/// A place, given back when it is dropped.
pub struct Place {
    places: Places,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&self.source) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_all_and_by_source() {
        let places = Places::new(256, 16);
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut held: Vec<_> = (0..16).map(|_| places.enter(ip(1)).unwrap()).collect();
        assert!(places.enter(ip(1)).is_none());
        held.pop();
        held.push(places.enter(ip(1)).unwrap());
        held.extend(
            (2..17).flat_map(|last| (0..16).map(move |_| last)).map(|last| places.enter(ip(last)).unwrap()),
        );
        assert_eq!(held.len(), 256);
        assert!(places.enter(ip(99)).is_none());
        held.clear();
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
