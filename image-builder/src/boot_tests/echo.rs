//! The echo VM.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::BootTest;
use super::harness::Context;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "echo",
    about: "the echo VM sends back what it is sent by TCP",
    limit: Duration::from_secs(60),
    long: false,
    run: echo,
}];

/// More than any one buffer on the way holds, and no multiple of anything.
const BYTES: usize = 100_003;

/// Connections at once: fewer than the VM takes, since the one before may still be closing.
const CONNECTIONS: usize = 3;

fn echo(context: &mut Context<'_>) -> Result<()> {
    context.boot(None)?;
    come_back(context, BYTES)?;
    several(context).wrap_err("several connections at once")?;
    context.healthy()
}

/// So many bytes, sent to the echo VM, come back as they are.
pub(super) fn come_back(context: &mut Context<'_>, bytes: usize) -> Result<()> {
    // QEMU accepts connections before the VM does: wait until it says that it does.
    context.line(0, &["vm echo|", "echo on TCP"])?;
    let sent: Vec<u8> = (0..bytes).map(|index| (index * 31 + index / 251) as u8).collect();
    let received = exchange(context, &sent).wrap_err("one connection with many bytes")?;
    if received == sent {
        Ok(())
    } else {
        Err(miette!("of {bytes} bytes, {} came back, or not the same", received.len()))
    }
}

fn several(context: &Context<'_>) -> Result<()> {
    let mut streams = (0..CONNECTIONS).map(|_| context.connect("echo")).collect::<Result<Vec<_>>>()?;
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("connection {index}").as_bytes()).into_diagnostic()?;
    }
    for (index, stream) in streams.iter_mut().enumerate().rev() {
        let expected = format!("connection {index}");
        let mut received = vec![0; expected.len()];
        stream.read_exact(&mut received).into_diagnostic()?;
        if received != expected.as_bytes() {
            return Err(miette!("connection {index} got {:?}", String::from_utf8_lossy(&received)));
        }
    }
    Ok(())
}

fn exchange(context: &Context<'_>, sent: &[u8]) -> Result<Vec<u8>> {
    let stream = context.connect("echo")?;
    let mut writer = stream.try_clone().into_diagnostic()?;
    let mut reader = stream;
    std::thread::scope(|scope| {
        // Writing and reading at once: neither side need hold all of it.
        scope.spawn(move || {
            // A connection that is dropped shows in what is read.
            let _ = writer.write_all(sent).and_then(|()| writer.shutdown(Shutdown::Write));
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).into_diagnostic()?;
        Ok(received)
    })
}
