//! The machine's own screen and keyboard.

use std::thread;
use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::BootTest;
use super::harness::{Context, Firmware};
use crate::interrupt;
use crate::machine::picture::Picture;
use crate::machine::qemu::Medium;
use crate::machine::qmp::Qmp;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "screen",
    about: "an operator at the screen and keyboard: sees the boot log, types commands, and goes on after the console was killed",
    limit: Duration::from_secs(120),
    long: false,
    run: screen,
}];

/// Between two looks at the screen.
const PAUSE: Duration = Duration::from_millis(200);

fn screen(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    let boot = context.image_of(&built, Medium::Usb, Firmware::Bios)?;
    let socket = context.socket()?;
    context.boot_changed(&system, &built, |_, machine| {
        (machine.boot, machine.qmp) = (boot, Some(socket.clone()));
        Ok(())
    })?;
    let mut operator = Operator { qmp: Qmp::connect(&socket)? };
    // The boot log: the kernel's, that of servers without a console, and that of all others.
    let log =
        ["microkernel: ", "init: default: ", "platform: ", "console: screen of ", "swap: ", "vm httpd-1| serving http"];
    operator
        .sees(context, "the boot log", |rows| log.iter().all(|line| rows.iter().any(|row| row.starts_with(line))))?;
    operator.sees(context, "the prompt", at_prompt)?;
    let position = context.running()?.serial.position();
    operator.qmp.type_text("vmx")?;
    operator.sees(context, "what was typed", |rows| rows.last().is_some_and(|row| row == "denali> vmx"))?;
    operator.qmp.press("backspace")?;
    operator.qmp.type_text("s\n")?;
    let answer = |rows: &[String]| {
        let typed = rows.iter().position(|row| row == "denali> vms");
        let vm = |row: &String| row.contains("httpd-2") && row.ends_with("running");
        typed.is_some_and(|typed| rows[typed..].iter().any(vm)) && at_prompt(rows)
    };
    operator.sees(context, "the answer to `vms`", answer)?;
    // The serial line shows the same.
    context.line(position, &["httpd-2", "running"])?;
    operator.qmp.picture(&context.folder().join("screen.png"))?;
    // A console that dies begins anew, on both.
    operator.qmp.type_text("kill console\n")?;
    operator.sees(context, "that the console was restarted", |rows| {
        let says = |text: &str| rows.iter().any(|row| row.starts_with(text));
        says("init: server console died: killed") && says("console: restarted (restart 1)")
    })?;
    operator.qmp.type_text("ps\n")?;
    operator.sees(context, "the answer to `ps`", |rows| {
        rows.iter().any(|row| row.starts_with("console ") && row.contains("running")) && at_prompt(rows)
    })?;
    context.page("httpd-1", "/")?;
    context.healthy()
}

/// Whether the prompt is at the bottom, with nothing behind it.
fn at_prompt(rows: &[String]) -> bool {
    rows.last().is_some_and(|row| row == "denali>")
}

/// Who sits at the machine.
struct Operator {
    qmp: Qmp,
}

impl Operator {
    /// Waits until the rows on the screen, up to the last that is not empty, are as they should be.
    fn sees(&mut self, context: &mut Context<'_>, what: &str, is_so: impl Fn(&[String]) -> bool) -> Result<()> {
        let file = context.folder().join("screen.ppm");
        let deadline = context.deadline();
        loop {
            self.qmp.picture(&file)?;
            let picture = Picture::read(&file)?;
            let mut rows = picture.text();
            while rows.pop_if(|row| row.is_empty()).is_some() {}
            if is_so(&rows) {
                return Ok(());
            }
            context.healthy()?;
            interrupt::check()?;
            if Instant::now() >= deadline {
                let (width, height) = picture.size();
                let rows = rows.join("\n  ");
                return Err(miette!("the screen ({width} x {height}) does not show {what}; it shows\n  {rows}"));
            }
            thread::sleep(PAUSE);
        }
    }
}
