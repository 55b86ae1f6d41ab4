//! `cargo denali image`

use std::process::ExitCode;

use miette::Result;

use crate::cli::Image;
use crate::session::Session;
use crate::ui;

pub(super) fn run(options: &Image) -> Result<ExitCode> {
    let mut session = Session::start(options.tools)?;
    let path = options.system.clone().unwrap_or_else(|| session.workspace.default_system());
    let system = session.load(&path)?;
    let built = session.build(&system)?;
    session.image(&built, &options.output)?;
    let image = options.output.display();
    ui::note(&format!("Made {image}"));
    ui::note(&format!("  to try it:            cargo denali run --image {image} [--uefi]"));
    ui::note("  to find a USB stick:  lsblk -o NAME,SIZE,MODEL,TRAN,MOUNTPOINTS");
    ui::note(&format!("  to write it to one:   sudo dd if={image} of=/dev/sdX bs=4M conv=fsync status=progress"));
    ui::note("                        All that was on /dev/sdX is lost. Look twice that it is the stick.");
    Ok(ExitCode::SUCCESS)
}
