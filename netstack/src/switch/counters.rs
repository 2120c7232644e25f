//! What the switch counts.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name, in a fixed order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Frames that came in, from any side.
    frames_in_count,
    /// Their bytes.
    frames_in_bytes,
    /// Frames that went out, to any side.
    frames_out_count,
    /// Their bytes.
    frames_out_bytes,
    /// SYNs that were given a cell.
    syns_placed_count,
    /// Of these, how often a cell refused and another was asked.
    syns_retried_count,
    /// Answered here: ARP.
    arp_replies_count,
    /// Answered here: ping of the cluster's address.
    echo_replies_count,
    /// Dropped: not a frame, or a bad checksum.
    malformed_count,
    /// Dropped: neither from nor to the cluster, or of a protocol it has not.
    not_ours_count,
    /// Dropped: a cell spoke for a flow of another.
    not_owner_count,
    /// Dropped: nobody to give it to.
    no_owner_count,
    /// Dropped: its cell is not there.
    cell_down_count,
    /// Dropped: parts of datagrams beyond the bounds.
    fragments_dropped_count,
    /// Dropped: the output queue was full.
    queue_full_count,
}
