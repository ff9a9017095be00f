//! The DSDT: the machine's devices, in AML.
//!
//! A stock kernel finds everything here: there is no PCI, no MP table and no command-line device
//! list. Each virtio-mmio slot is an `LNRO0005`, COM1 a `PNP0501`, and events arrive through a
//! generic event device (ACPI 6.5, 5.6.9), since a hardware-reduced machine has no SCI and no fixed
//! power button.

use super::layout::{ACPI_EVENT_PORT, ACPI_S5_SLEEP_TYPE, COM1, POWER, Place};
use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
};
use wherry_devices::power;

/// Notification value "the button was pressed" (ACPI 6.5, 4.8.2.2.1.2).
const POWER_BUTTON_PRESSED: u8 = 0x80;
/// Bit of the event register that stands for the power button.
const EVENT_POWER_BUTTON: u8 = power::EVENT_POWER_BUTTON as u8;

/// The body of the DSDT (without its header) for `vcpus` vCPUs (below 255) and these virtio-mmio
/// slots.
pub(super) fn body(vcpus: u32, slots: &[(u32, Place)]) -> Vec<u8> {
    let mut children = Vec::new();
    for cpu in 0..vcpus {
        processor(cpu, &mut children);
    }
    com1(&mut children);
    for (slot, place) in slots {
        virtio_mmio(*slot, place, &mut children);
    }
    power_button(&mut children);
    event_device(&mut children);

    let mut aml = Scope::raw(Path::new("\\_SB_"), children);
    let zero = 0u8;
    // Only the first value counts on a hardware-reduced machine: it goes to the sleep control
    // register.
    let s5 = Package::new(vec![&ACPI_S5_SLEEP_TYPE, &zero, &zero, &zero]);
    Name::new(Path::new("\\_S5_"), &s5).to_aml_bytes(&mut aml);
    aml
}

/// A level-triggered, active-high interrupt of one device alone.
fn level(gsi: u32) -> Interrupt {
    Interrupt::new(true, false, false, false, gsi)
}

fn path(name: &str) -> Path {
    Path::new(name)
}

/// Ties the MADT's processor `_UID` to a device, as ACPI 6.5, 8.4 wants it.
fn processor(uid: u32, out: &mut Vec<u8>) {
    let hid = Name::new(path("_HID"), &"ACPI0007");
    let uid_name = Name::new(path("_UID"), &uid);
    Device::new(path(&format!("C{uid:03X}")), vec![&hid, &uid_name]).to_aml_bytes(out);
}

fn com1(out: &mut Vec<u8>) {
    let hid = Name::new(path("_HID"), &EISAName::new("PNP0501"));
    let uid = Name::new(path("_UID"), &ONE);
    let port = COM1.base as u16;
    let ports = IO::new(port, port, 1, COM1.len as u8);
    let irq = level(COM1.gsi);
    let crs = ResourceTemplate::new(vec![&ports, &irq]);
    let crs = Name::new(path("_CRS"), &crs);
    Device::new(path("COM1"), vec![&hid, &uid, &crs]).to_aml_bytes(out);
}

fn virtio_mmio(slot: u32, place: &Place, out: &mut Vec<u8>) {
    let hid = Name::new(path("_HID"), &"LNRO0005");
    let uid = Name::new(path("_UID"), &slot);
    // Device DMA goes through the same caches as the CPU.
    let cca = Name::new(path("_CCA"), &ONE);
    // The hole ends at 4 GiB, so the base fits 32 bits.
    let window = Memory32Fixed::new(true, place.base as u32, place.len as u32);
    let irq = level(place.gsi);
    let crs = ResourceTemplate::new(vec![&window, &irq]);
    let crs = Name::new(path("_CRS"), &crs);
    Device::new(path(&format!("VR{slot:02X}")), vec![&hid, &uid, &cca, &crs]).to_aml_bytes(out);
}

fn power_button(out: &mut Vec<u8>) {
    let hid = Name::new(path("_HID"), &EISAName::new("PNP0C0C"));
    Device::new(path("PWRB"), vec![&hid]).to_aml_bytes(out);
}

/// `_EVT` reads the event register once (reading clears it) and passes on what happened.
fn event_device(out: &mut Vec<u8>) {
    let hid = Name::new(path("_HID"), &"ACPI0013");
    let uid = Name::new(path("_UID"), &ONE);
    let irq = level(POWER.gsi);
    let crs = ResourceTemplate::new(vec![&irq]);
    let crs = Name::new(path("_CRS"), &crs);
    let length = 4u8;
    let region = OpRegion::new(path("EVTR"), OpRegionSpace::SystemIO, &ACPI_EVENT_PORT, &length);
    let field = Field::new(
        path("EVTR"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 32)],
    );

    let events = Local(0);
    let source = path("EVTS");
    let read = Store::new(&events, &source);
    let bit = Local(1);
    let mask = And::new(&bit, &events, &EVENT_POWER_BUTTON);
    let pressed = Equal::new(&bit, &EVENT_POWER_BUTTON);
    let button = path("PWRB");
    let notify = Notify::new(&button, &POWER_BUTTON_PRESSED);
    let on_button = If::new(&pressed, vec![&notify]);
    let evt = Method::new(path("_EVT"), 1, true, vec![&read, &mask, &on_button]);
    Device::new(path("GED_"), vec![&hid, &uid, &crs, &region, &field, &evt]).to_aml_bytes(out);
}
