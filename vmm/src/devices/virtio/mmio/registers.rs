//! Register offsets and bits of virtio-mmio (section 4.2.2), and of the device status (section 2.1).

/// Bytes of a device's window.
pub const WINDOW_BYTES: u64 = 0x1000;

/// "virt" (R).
pub const MAGIC_VALUE: u64 = 0x000;
/// What MagicValue reads.
pub const MAGIC: u32 = 0x7472_6976;
/// Version of the layout (R): 2.
pub const VERSION: u64 = 0x004;
/// Virtio device ID (R).
pub const DEVICE_ID: u64 = 0x008;
/// Vendor (R).
pub const VENDOR_ID: u64 = 0x00c;
/// What VendorID reads: "SSIV".
pub const VENDOR: u32 = 0x5649_5353;
/// 32 of the features offered, as DeviceFeaturesSel says (R).
pub const DEVICE_FEATURES: u64 = 0x010;
/// Which 32 DeviceFeatures shows (W).
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// 32 of the features accepted, as DriverFeaturesSel says (W).
pub const DRIVER_FEATURES: u64 = 0x020;
/// Which 32 DriverFeatures sets (W).
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Which queue the queue registers mean (W).
pub const QUEUE_SEL: u64 = 0x030;
/// Most descriptors of the queue, 0 if there is none (R).
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// Descriptors of the queue (W).
pub const QUEUE_NUM: u64 = 0x038;
/// The queue can be used (RW).
pub const QUEUE_READY: u64 = 0x044;
/// The queue whose index is written has new buffers (W).
pub const QUEUE_NOTIFY: u64 = 0x050;
/// Why the interrupt was raised (R).
pub const INTERRUPT_STATUS: u64 = 0x060;
/// Which reasons were handled (W).
pub const INTERRUPT_ACK: u64 = 0x064;
/// Device status; 0 resets (RW).
pub const STATUS: u64 = 0x070;
/// Descriptor table (W).
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// Descriptor table, upper half (W).
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// Available ring (W).
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// Available ring, upper half (W).
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// Used ring (W).
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// Used ring, upper half (W).
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Which shared memory region the registers after it mean (W).
pub const SHM_SEL: u64 = 0x0ac;
/// First of SHMLenLow, SHMLenHigh, SHMBaseLow, SHMBaseHigh (R): all ones, there is no shared memory region.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// Last of them.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// Changes when the configuration space changes (R).
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// The configuration space begins.
pub const CONFIG: u64 = 0x100;

/// InterruptStatus: used buffers.
pub const INTERRUPT_USED: u32 = 1;
/// InterruptStatus: the configuration changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// Device status: the driver has noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Device status: the driver knows how to drive it.
pub const DRIVER: u32 = 2;
/// Device status: the driver is ready.
pub const DRIVER_OK: u32 = 4;
/// Device status: features are agreed.
pub const FEATURES_OK: u32 = 8;
/// Device status: the device cannot go on without a reset.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// Device status: the driver has given up.
pub const FAILED: u32 = 128;

/// Feature: the device follows version 1 of the specification.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature: used_event and avail_event (section 2.7.7 and 2.7.10).
pub const F_RING_EVENT_IDX: u64 = 1 << 29;
