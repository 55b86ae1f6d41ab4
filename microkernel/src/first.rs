//! The first domain: `init`, from the bundle, with every capability there is.

use crate::{apic, bring_up::BringUp, clock::Clock, machine::Metal, memory::Memory, physical};
use elf::{
    ElfBytes,
    abi::{PF_W, PF_X, PT_LOAD},
    endian::LittleEndian,
};
use microkernel_logic::{
    Frame, Kernel, Machine,
    boot::{Region, StartInfo},
    capability::Capability,
};
use protocol::{
    boot::{self, BootInfo, Extent, slot},
    bundle,
    capability::{Kind, Rights},
    domain::Band,
    layout::{HEAP, PAGE, STACK_SIZE, STACK_TOP, STARTUP},
    memory::Access,
};

/// Memory of `init`: program, stack, heap, page tables, and frames left for tables of what it maps.
const MEMORY: u64 = 12 << 20;
/// Heap of `init`.
const HEAP_BYTES: u64 = 8 << 20;
/// Frames of the devices extent: everything a 32-bit frame number reaches, 16 TiB.
const ALL_FRAMES: u32 = u32::MAX;

/// Hands out the frames of `init`'s extent and maps them.
struct Builder<'a> {
    kernel: &'a mut Kernel<Metal>,
    root: Frame,
    next: Frame,
    end: Frame,
}

impl Builder<'_> {
    fn frame(&mut self) -> Result<Frame, &'static str> {
        if self.next == self.end {
            return Err("init does not fit into its memory");
        }
        self.next += 1;
        self.kernel.machine.zero(self.next - 1);
        Ok(self.next - 1)
    }

    /// Maps a zeroed frame at a page.
    fn page(&mut self, address: u64, access: Access) -> Result<Frame, &'static str> {
        let frame = self.frame()?;
        while !self
            .kernel
            .map_at_boot(self.root, address, frame, access)
            .map_err(|_| "init has overlapping segments")?
        {
            let table = self.frame()?;
            self.kernel
                .add_table_at_boot(self.root, address, table)
                .map_err(|_| "init lies outside its address space")?;
        }
        Ok(frame)
    }

    /// Maps `length` zeroed bytes.
    fn range(&mut self, start: u64, length: u64, access: Access) -> Result<(), &'static str> {
        (0..length.div_ceil(PAGE)).try_for_each(|page| self.page(start + page * PAGE, access).map(drop))
    }

    /// Maps a segment and copies its bytes.
    fn segment(&mut self, address: u64, length: u64, data: &[u8], access: Access) -> Result<(), &'static str> {
        let end = address.checked_add(length).filter(|end| *end < HEAP && address >= STARTUP + PAGE);
        let end = end.ok_or("a segment of init lies outside its address space")?;
        let mut page = address & !(PAGE - 1);
        while page < end {
            let frame = self.page(page, access)?;
            // The bytes of the segment that fall into this page.
            let (from, to) = (page.max(address), (page + PAGE).min(address + data.len() as u64));
            if from < to {
                let bytes = &data[(from - address) as usize..(to - address) as usize];
                self.kernel.machine.write((u64::from(frame) << 12) + from % PAGE, bytes);
            }
            page += PAGE;
        }
        Ok(())
    }
}

fn memory_capability(region: Region) -> Capability {
    let rights = Rights::READ
        | Rights::WRITE
        | Rights::EXECUTE
        | Rights::MAP
        | Rights::CREATE
        | Rights::CONTROL
        | Rights::WINDOW
        | Rights::RAISE;
    Capability::new(Kind::Memory, rights, (region.start / PAGE) as u32, (region.length / PAGE) as u32)
}

fn extent(region: Region) -> Extent {
    Extent { first: region.start / PAGE, count: region.length / PAGE }
}

/// Makes the kernel in `place`, and in it `init`, ready to run. The kernel is too large to be passed about on boot's stack.
#[inline(never)]
pub fn start(
    info: &StartInfo,
    mut memory: Memory,
    clock: Clock,
    bring_up: BringUp,
    place: &mut Option<Kernel<Metal>>,
) -> Result<(), &'static str> {
    if info.bundle.length == 0 {
        return Err("no bundle was loaded (with QEMU: -initrd bundle.cpio; with GRUB: module2)");
    }
    // SAFETY: the loader put the bundle there, and its frames were taken out of free memory.
    let bundle = unsafe { physical::bytes(info.bundle.start, info.bundle.length as usize) };
    let program = match bundle::files(bundle).next() {
        Some(Ok(file)) if file.name == bundle::INIT => file.data,
        Some(Err(error)) => {
            crate::say!("bundle refused: {error}");
            return Err("the bundle is damaged");
        }
        _ => return Err("bundle refused: its first file is not `init`"),
    };
    let own = Region { start: memory.free.take(MEMORY, u64::MAX).ok_or("too little memory")?, length: MEMORY };
    let (largest, others) = memory.free.largest();
    memory.frames.hide((apic::LOCAL / PAGE) as Frame);

    let kernel = place.insert(Kernel::new(Metal::new(clock, bring_up), memory.frames));
    let domain = (own.start / PAGE) as Frame;
    kernel.create_domain(domain, domain + 1, Band::Driver as u8).map_err(|_| "init's own memory is in use")?;
    let end = domain + (MEMORY / PAGE) as Frame;
    let mut builder = Builder { kernel: &mut *kernel, root: domain + 1, next: domain + 2, end };

    let entry = load(&mut builder, program)?;
    builder.range(STACK_TOP - STACK_SIZE, STACK_SIZE, Access::WRITE)?;
    builder.range(HEAP, HEAP_BYTES, Access::WRITE)?;
    let startup = builder.page(STARTUP, Access::empty())?;
    let own_free = Extent { first: u64::from(builder.next), count: u64::from(end - builder.next) };

    let mut boot_info = BootInfo {
        magic: boot::MAGIC,
        memory: extent(largest),
        bundle: extent(Region { length: info.bundle.length.next_multiple_of(PAGE), ..info.bundle }),
        bundle_length: info.bundle.length,
        own_free,
        heap_length: HEAP_BYTES,
        rsdp: info.rsdp,
        tsc_base: clock.base,
        tsc_multiplier: clock.multiplier,
        processors: 1,
        memory_total: memory.total,
        framebuffer: info.framebuffer,
        ..BootInfo::default()
    };
    let mut itself = Capability::new(Kind::Domain, Rights::CONTROL | Rights::CALL | Rights::RAISE, domain, 0);
    itself.generation = kernel.frames.generation(domain);
    let slots = &mut kernel.machine.block_mut(domain).slots;
    slots[usize::from(slot::SELF)] = itself;
    slots[usize::from(slot::MEMORY)] = memory_capability(largest);
    for (index, region) in others.take(boot::EXTENTS).enumerate() {
        slots[usize::from(slot::MORE_MEMORY) + index] = memory_capability(region);
        boot_info.more_memory[index] = extent(region);
        boot_info.more_memory_count += 1;
    }
    let bundle_frames = Region { length: info.bundle.length.next_multiple_of(PAGE), ..info.bundle };
    slots[usize::from(slot::BUNDLE)] = Capability::new(
        Kind::Memory,
        Rights::READ | Rights::MAP,
        (bundle_frames.start / PAGE) as u32,
        (bundle_frames.length / PAGE) as u32,
    );
    slots[usize::from(slot::DEVICES)] =
        Capability::new(Kind::Memory, Rights::READ | Rights::WRITE | Rights::MAP | Rights::DEVICE, 0, ALL_FRAMES);
    slots[usize::from(slot::PORTS)] = Capability::new(Kind::Ports, Rights::empty(), 0, 1 << 16);
    slots[usize::from(slot::INTERRUPTS)] = Capability::new(Kind::InterruptAuthority, Rights::empty(), 0, 0);
    slots[usize::from(slot::DEBUG)] = Capability::new(Kind::Debug, Rights::empty(), 0, 0);
    slots[usize::from(slot::OWN)] = memory_capability(own);
    // SAFETY: the record is `repr(C)`, of integers only, and without padding.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const boot_info).cast::<u8>(), size_of::<BootInfo>()) };
    kernel.machine.write(u64::from(startup) << 12, bytes);
    kernel
        .start_domain(domain, entry, STACK_TOP, 0)
        .map_err(|_| "init's entry point lies outside its address space")?;
    Ok(())
}

/// Loads the program; returns its entry point.
fn load(builder: &mut Builder, program: &[u8]) -> Result<u64, &'static str> {
    let damaged = "bundle refused: init is not a whole ELF program";
    let elf = ElfBytes::<LittleEndian>::minimal_parse(program).map_err(|_| damaged)?;
    for segment in elf.segments().ok_or(damaged)?.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let data = elf.segment_data(&segment).map_err(|_| damaged)?;
        if data.len() as u64 > segment.p_memsz {
            return Err(damaged);
        }
        let mut access = Access::empty();
        access.set(Access::WRITE, segment.p_flags & PF_W != 0);
        access.set(Access::EXECUTE, segment.p_flags & PF_X != 0);
        builder.segment(segment.p_vaddr, segment.p_memsz, data, access)?;
    }
    Ok(elf.ehdr.e_entry)
}
