//! A 16550 serial port.
//!
//! All waiting is bounded: a port that never becomes ready to send costs one look at its status for each attempt.

/// Access to the eight registers of the port.
pub trait Registers {
    /// Reads a register, 0-7.
    fn read(&mut self, register: u8) -> u8;
    /// Writes a register, 0-7.
    fn write(&mut self, register: u8, value: u8);
}

/// Receive buffer (read), transmit holding (write), divisor low.
const DATA: u8 = 0;
/// Interrupt enable, divisor high.
const INTERRUPT_ENABLE: u8 = 1;
/// Interrupt identification (read), FIFO control (write).
const INTERRUPT_ID: u8 = 2;
const FIFO_CONTROL: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

/// Interrupt enable: received data.
const ENABLE_RECEIVE: u8 = 1 << 0;
/// Interrupt enable: transmit holding register empty.
const ENABLE_TRANSMIT: u8 = 1 << 1;
/// Line status: data ready.
const DATA_READY: u8 = 1 << 0;
/// Line status: transmit holding register empty; then the FIFO takes [`FIFO`] bytes.
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// Line control: 8 bits, no parity, one stop bit.
const EIGHT_N_ONE: u8 = 0b11;
/// Line control: the first two registers are the divisor.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Bytes that the transmit FIFO takes when it is empty.
const FIFO: usize = 16;
/// Causes looked at for one interrupt. The line is edge-triggered, so all must be; a port with more at once is broken.
const CAUSES_MAX: usize = 64;

/// The serial port.
pub struct Uart<R> {
    registers: R,
    present: bool,
    enabled: u8,
}

impl<R: Registers> Uart<R> {
    /// Sets the port up for 115,200 baud, 8N1, with interrupts for received data.
    ///
    /// If there is no port ([`Uart::is_present`]), all else does nothing.
    pub fn new(mut registers: R) -> Uart<R> {
        let present = [0x5a, 0xa5].into_iter().all(|pattern| {
            registers.write(SCRATCH, pattern);
            registers.read(SCRATCH) == pattern
        });
        let mut uart = Uart { registers, present, enabled: 0 };
        if present {
            uart.registers.write(INTERRUPT_ENABLE, 0);
            uart.registers.write(LINE_CONTROL, DIVISOR_LATCH | EIGHT_N_ONE);
            uart.registers.write(DATA, 1);
            uart.registers.write(INTERRUPT_ENABLE, 0);
            uart.registers.write(LINE_CONTROL, EIGHT_N_ONE);
            // FIFOs on, an interrupt for every byte: typing is slow, and an operator wants an echo at once. The FIFOs are
            // not cleared: the kernel's last bytes may still be in the transmitter.
            uart.registers.write(FIFO_CONTROL, 0x01);
            // DTR, RTS, and OUT2, which connects the interrupt.
            uart.registers.write(MODEM_CONTROL, 0x0b);
            uart.enable(ENABLE_RECEIVE);
        }
        uart
    }

    /// Whether the machine has this port.
    pub fn is_present(&self) -> bool {
        self.present
    }

    fn enable(&mut self, enabled: u8) {
        if self.enabled != enabled {
            self.enabled = enabled;
            self.registers.write(INTERRUPT_ENABLE, enabled);
        }
    }

    /// Sends what `next` gives, at most `budget` bytes (rounded up to a FIFO). Returns whether the port stopped taking
    /// bytes before `next` ran out; then an interrupt comes when it takes bytes again.
    ///
    /// Without a port the bytes are dropped.
    pub fn send(&mut self, budget: usize, mut next: impl FnMut() -> Option<u8>) -> bool {
        let mut sent = 0;
        while sent < budget {
            if self.present && self.registers.read(LINE_STATUS) & TRANSMIT_EMPTY == 0 {
                self.enable(ENABLE_RECEIVE | ENABLE_TRANSMIT);
                return true;
            }
            for _ in 0..FIFO {
                let Some(byte) = next() else {
                    if self.present {
                        self.enable(ENABLE_RECEIVE);
                    }
                    return false;
                };
                if self.present {
                    self.registers.write(DATA, byte);
                }
                sent += 1;
            }
        }
        false
    }

    /// The next received byte.
    pub fn receive(&mut self) -> Option<u8> {
        (self.present && self.registers.read(LINE_STATUS) & DATA_READY != 0).then(|| self.registers.read(DATA))
    }

    /// Handles an interrupt: takes all that was received. Afterwards, [`Uart::send`] what waits.
    pub fn interrupt(&mut self, mut received: impl FnMut(u8)) {
        if !self.present {
            return;
        }
        for _ in 0..CAUSES_MAX {
            match self.registers.read(INTERRUPT_ID) & 0b1111 {
                // Received data, or data that lay in the FIFO for a while.
                0b0100 | 0b1100 => {
                    for _ in 0..FIFO {
                        match self.receive() {
                            Some(byte) => received(byte),
                            None => break,
                        }
                    }
                }
                // Line status (overrun, break): reading it clears it.
                0b0110 => {
                    self.registers.read(LINE_STATUS);
                }
                // Modem status likewise.
                0b0000 => {
                    self.registers.read(MODEM_STATUS);
                }
                // Transmitter empty: the read of the cause cleared it.
                0b0010 => {}
                // Bit 0: nothing is pending.
                cause if cause & 1 != 0 => return,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::VecDeque, vec::Vec};

    /// A port that empties its FIFO `credit` times more.
    #[derive(Default)]
    struct Mock {
        scratch: u8,
        line_control: u8,
        divisor: u8,
        enabled: u8,
        input: VecDeque<u8>,
        sent: Vec<u8>,
        room: usize,
        credit: usize,
        missing: bool,
    }

    impl Registers for Mock {
        fn read(&mut self, register: u8) -> u8 {
            match register {
                _ if self.missing => 0xff,
                DATA => self.input.pop_front().unwrap_or(0),
                INTERRUPT_ID if self.input.is_empty() => 0xc1,
                INTERRUPT_ID => 0xc4,
                LINE_STATUS => {
                    if self.room == 0 && self.credit > 0 {
                        self.room = FIFO;
                        self.credit -= 1;
                    }
                    let empty = if self.room == FIFO { TRANSMIT_EMPTY } else { 0 };
                    empty | u8::from(!self.input.is_empty())
                }
                SCRATCH => self.scratch,
                _ => 0,
            }
        }
        fn write(&mut self, register: u8, value: u8) {
            match register {
                DATA if self.line_control & DIVISOR_LATCH != 0 => self.divisor = value,
                DATA => {
                    assert!(self.room > 0, "written to a full FIFO");
                    self.room -= 1;
                    self.sent.push(value);
                }
                INTERRUPT_ENABLE if self.line_control & DIVISOR_LATCH == 0 => self.enabled = value,
                LINE_CONTROL => self.line_control = value,
                SCRATCH => self.scratch = value,
                _ => {}
            }
        }
    }

    #[test]
    fn is_set_up_for_115200_8n1() {
        let uart = Uart::new(Mock::default());
        assert!(uart.is_present());
        assert_eq!((uart.registers.divisor, uart.registers.line_control), (1, EIGHT_N_ONE));
        assert_eq!(uart.registers.enabled, ENABLE_RECEIVE);
    }

    #[test]
    fn sends_while_the_port_takes_bytes_then_waits_for_an_interrupt() {
        let mut uart = Uart::new(Mock { credit: 2, ..Mock::default() });
        let mut bytes = (0..40u8).collect::<VecDeque<_>>();
        assert!(uart.send(1000, || bytes.pop_front()));
        assert_eq!(uart.registers.sent, (0..32).collect::<Vec<_>>());
        assert_eq!(uart.registers.enabled, ENABLE_RECEIVE | ENABLE_TRANSMIT);
        uart.registers.credit = 1;
        assert!(!uart.send(1000, || bytes.pop_front()));
        assert_eq!(uart.registers.sent, (0..40).collect::<Vec<_>>());
        assert_eq!(uart.registers.enabled, ENABLE_RECEIVE);
    }

    #[test]
    fn stops_at_the_budget() {
        let mut uart = Uart::new(Mock { credit: 100, ..Mock::default() });
        assert!(!uart.send(20, || Some(b'x')));
        assert_eq!(uart.registers.sent.len(), 32);
    }

    #[test]
    fn takes_all_input_at_an_interrupt() {
        let mut uart = Uart::new(Mock { input: (0..100).collect(), ..Mock::default() });
        let mut received = Vec::new();
        uart.interrupt(|byte| received.push(byte));
        assert_eq!(received, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_machine_without_the_port_swallows_output() {
        let mut uart = Uart::new(Mock { missing: true, ..Mock::default() });
        assert!(!uart.is_present());
        let mut bytes = (0..40u8).collect::<VecDeque<_>>();
        assert!(!uart.send(1000, || bytes.pop_front()));
        assert!(bytes.is_empty());
        assert_eq!(uart.receive(), None);
        uart.interrupt(|_| unreachable!());
    }
}
