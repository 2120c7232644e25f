//! Counters of devices: monotonic, relaxed, named by their unit (`_count`, `_bytes`, `_pages`).

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A snapshot of a device's counters, by name, in a fixed order.
pub type Snapshot = Vec<(&'static str, u64)>;

/// Declares a struct of [`Counter`]s with a `snapshot` of them all, so that no counter is left out of a report.
#[macro_export]
macro_rules! device_metrics {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name { $($(#[$field_meta])* pub $field: $crate::devices::metrics::Counter),* }

        impl $name {
            /// All counters and their names.
            pub fn snapshot(&self) -> $crate::devices::metrics::Snapshot {
                vec![$((stringify!($field), self.$field.get())),*]
            }
        }
    };
}

#[cfg(test)]
mod tests {
    device_metrics! {
        /// As the test asks.
        struct Two {
            /// First.
            first_count,
            /// Second.
            second_bytes,
        }
    }

    #[test]
    fn a_snapshot_names_every_counter() {
        let two = Two::default();
        two.first_count.inc();
        two.second_bytes.add(7);
        assert_eq!(two.snapshot(), [("first_count", 1), ("second_bytes", 7)]);
    }
}
