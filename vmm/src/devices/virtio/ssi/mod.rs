//! The ssi device (`docs/ssi-device.md`): messages between cells, and page operations. What carries them is behind two
//! traits, [`CellLink`] and [`PageService`]; what arrives enters through an [`SsiHandle`].

mod device;
/// Messages that wait for a cell.
mod inbox;
/// The traits of what is behind the device.
mod link;
mod metrics;
/// The worker of the page queue.
mod page_worker;
mod state;
#[cfg(test)]
mod tests;
/// The worker of the two message queues.
mod worker;

pub use device::SsiDevice;
pub use inbox::{Class, DeliverError, Inbox};
pub use link::{CellLink, PageBytes, PageDone, PageService, PageTask, Sent};
pub use metrics::SsiMetrics;
pub use state::{SsiConfig, SsiError, SsiHandle};

/// Most pages of FETCH, PREFETCH and RELEASE that are under way at once: 4 MiB of bytes in flight. Requests beyond wait
/// in their queue.
pub const PAGES_IN_FLIGHT_MAX: usize = 1024;
/// Most messages of one class that wait for a cell: 2 MiB.
pub const INBOX_MESSAGES_MAX: usize = 64;
