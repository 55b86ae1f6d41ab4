//! The hardware as a model, for the tests.

use crate::{
    Frame, Machine,
    block::ControlBlock,
    paging::{Entry, Table},
};
use protocol::{
    abi::Error,
    domain::{EventKind, ProcessorStep},
};
use std::{boxed::Box, collections::HashMap, vec::Vec};

static EMPTY_TABLE: Table = [Entry::EMPTY; 512];

/// Physical memory as frames that come to be when touched, and a clock that the test moves.
#[derive(Default)]
pub struct Model {
    blocks: HashMap<Frame, Box<ControlBlock>>,
    tables: HashMap<Frame, Box<Table>>,
    bytes: HashMap<Frame, Box<[u8; 4096]>>,
    /// The clock.
    pub now: u64,
    /// What the timer was last set to.
    pub timer: Option<u64>,
    /// Text on the debug line.
    pub debug: Vec<u8>,
    /// Lines routed: number, vector, masked.
    pub lines: Vec<(u32, u8, bool)>,
    /// What a VM that runs elsewhere writes to physical memory when the kernel next sets bits of it: address, value.
    pub meanwhile: Option<(u64, u64)>,
    /// Pages flushed.
    pub flushed: Vec<(Frame, u64)>,
    /// The processor that is in the kernel.
    pub here: usize,
    /// Its and the others' state.
    pub processors: Vec<ProcessorModel>,
}

/// A processor of the model.
#[derive(Clone, Default, Debug)]
pub struct ProcessorModel {
    /// The domain loaded.
    pub loaded: Frame,
    /// What it has cached of that one's page tables: page and entry.
    pub translations: HashMap<u64, Entry>,
    /// Whether it was interrupted, and has not entered since.
    pub interrupted: bool,
    /// Whether it is in the kernel, waiting for the lock, since it was recalled.
    pub stopped: bool,
    /// Whether it enters with an exception that would not come again.
    pub trap: bool,
}

impl Model {
    /// A model with empty control blocks in these frames.
    pub fn with_blocks(frames: core::ops::Range<Frame>) -> Model {
        let mut model = Model::default();
        for frame in frames {
            *model.block_mut(frame) = ControlBlock::EMPTY;
        }
        model
    }
}

impl Model {
    /// The state of a processor.
    pub fn processor(&mut self, number: usize) -> &mut ProcessorModel {
        if self.processors.len() <= number {
            self.processors.resize(number + 1, ProcessorModel::default());
        }
        &mut self.processors[number]
    }
}

impl Machine for Model {
    fn block(&self, frame: Frame) -> &ControlBlock {
        self.blocks.get(&frame).expect("a control block")
    }
    fn block_mut(&mut self, frame: Frame) -> &mut ControlBlock {
        self.blocks.entry(frame).or_insert_with(|| Box::new(ControlBlock::EMPTY))
    }
    fn copy_words(&mut self, from: Frame, to: Frame, count: usize) {
        let words = self.block(from).registers.words;
        self.block_mut(to).registers.words[..count].copy_from_slice(&words[..count]);
    }
    fn table(&self, frame: Frame) -> &Table {
        self.tables.get(&frame).map_or(&EMPTY_TABLE, |table| table)
    }
    fn table_mut(&mut self, frame: Frame) -> &mut Table {
        self.tables.entry(frame).or_insert_with(|| Box::new(EMPTY_TABLE))
    }
    fn set_bits(&mut self, table: Frame, index: usize, bits: u64) {
        self.table_mut(table)[index].0 |= bits;
    }
    fn zero(&mut self, frame: Frame) {
        self.tables.remove(&frame);
        self.bytes.remove(&frame);
    }
    fn read(&self, physical: u64, bytes: &mut [u8]) {
        let offset = (physical % 4096) as usize;
        assert!(offset + bytes.len() <= 4096, "a read within one frame");
        match self.bytes.get(&((physical / 4096) as Frame)) {
            Some(frame) => bytes.copy_from_slice(&frame[offset..offset + bytes.len()]),
            None => bytes.fill(0),
        }
    }
    fn write(&mut self, physical: u64, bytes: &[u8]) {
        let offset = (physical % 4096) as usize;
        assert!(offset + bytes.len() <= 4096, "a write within one frame");
        let frame = self.bytes.entry((physical / 4096) as Frame).or_insert_with(|| Box::new([0; 4096]));
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    fn or_word(&mut self, physical: u64, bits: u64) {
        let mut word = [0; 8];
        self.read(physical, &mut word);
        self.write(physical, &(u64::from_le_bytes(word) | bits).to_le_bytes());
        if let Some((address, value)) = self.meanwhile.take() {
            self.write(address, &value.to_le_bytes());
        }
    }
    fn copy(&mut self, from: Option<u64>, to: u64, length: usize) {
        let mut bytes = std::vec![0; length];
        if let Some(from) = from {
            self.read(from, &mut bytes);
        }
        self.write(to, &bytes);
    }
    fn switch(&mut self, previous: Frame, next: Frame) {
        let processor = self.processor(self.here);
        assert_eq!(processor.loaded, previous, "the kernel knows what is loaded");
        *processor = ProcessorModel { loaded: next, ..ProcessorModel::default() };
    }
    fn flush_page(&mut self, root: Frame, address: u64) {
        self.flushed.push((root, address));
        self.processor(self.here).translations.remove(&address);
    }
    fn wait_for_switches(&mut self) {}
    fn interrupt(&mut self, processor: usize) {
        assert_ne!(processor, self.here, "a processor does not interrupt itself");
        self.processor(processor).interrupted = true;
    }
    fn recall(&mut self, processor: usize) -> bool {
        assert_ne!(processor, self.here, "a processor does not wait for itself");
        let processor = self.processor(processor);
        let (interrupted, trap) = (processor.interrupted, processor.trap);
        *processor = ProcessorModel { stopped: true, interrupted, trap, ..ProcessorModel::default() };
        trap
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn ticks(&self) -> u64 {
        self.now
    }
    fn ticks_to_nanoseconds(&self, ticks: u64) -> u64 {
        ticks
    }
    fn fpu_components(&self) -> u64 {
        7
    }
    fn arm_timer(&mut self, deadline: u64) {
        self.timer = Some(deadline);
    }
    fn port_read(&mut self, port: u16, width: u8) -> u32 {
        u32::from(port) << 8 | u32::from(width)
    }
    fn port_write(&mut self, _port: u16, _width: u8, _value: u32) {}
    fn debug_write(&mut self, bytes: &[u8]) {
        self.debug.extend(bytes);
    }
    fn report_unhandled(&mut self, _init: bool, _kind: EventKind, _code: u32, _address: u64, instruction: u64) {
        self.debug.extend(instruction.to_le_bytes());
    }
    fn io_apic_add(&mut self, address: u64, _first_interrupt: u32) -> bool {
        address.is_multiple_of(4096)
    }
    fn line_route(&mut self, number: u32, vector: u8, _level: bool, _low: bool, masked: bool) -> bool {
        self.lines.push((number, vector, masked));
        number < 24
    }
    fn message_for(&self, vector: u8) -> (u64, u32) {
        (0xfee0_0000, u32::from(vector))
    }
    fn start_processor(&mut self, _number: usize, apic: u32, _step: ProcessorStep) -> Result<(), Error> {
        if apic == 0 { Err(Error::Occupied) } else { Ok(()) }
    }
    fn end_of_interrupt(&mut self) {}
}
