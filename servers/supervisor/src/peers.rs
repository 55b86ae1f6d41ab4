//! The servers that carry out commands.

use alloc::{format, string::String, vec::Vec};
use protocol::{
    manifest::Startup,
    service::{
        Service,
        console::{self, Console},
        init::{self, Init},
        loader::{self, Loader},
        platform::{self, Platform},
        vdisk::{self, Vdisk},
    },
};
use server_runtime::{CallError, Client};
use supervisor::{command::Command, output, show};

/// Most VMs that one `vms` prints: more would take the console for minutes.
const VMS_SHOWN: usize = 1000;

/// Clients of those servers to which there is a channel.
pub struct Peers {
    /// The console.
    pub console: Option<Client<Console>>,
    init: Option<Client<Init>>,
    loader: Option<Client<Loader>>,
    platform: Option<Client<Platform>>,
    vdisk: Option<Client<Vdisk>>,
}

/// Asks a server; the error is what the operator is told. What only asks (`again`) is asked again if the server was restarted; what changes something is not, but that the server
/// was restarted since the last command is no reason to fail.
fn ask<S: Service>(
    client: &mut Option<Client<S>>,
    request: &S::Request<'_>,
    again: bool,
) -> Result<S::Response, String> {
    let Some(client) = client else {
        return Err(format!("the system file gives the supervisor no channel to {}", S::NAME));
    };
    if !again {
        client.close();
    }
    let mut answer = client.call(request);
    if again && answer.as_ref().is_err_and(|error| *error == CallError::Restarted) {
        answer = client.call(request);
    }
    answer.map_err(|error| format!("{}: {error}", S::NAME))
}

impl Peers {
    /// The servers of this startup page.
    pub fn new(startup: &Startup) -> Peers {
        fn client<S: Service>(startup: &Startup, name: &str) -> Option<Client<S>> {
            startup.channel(name).map(|channel| Client::new(channel.slot))
        }
        Peers {
            console: client(startup, "console"),
            init: client(startup, "init"),
            loader: client(startup, "loader"),
            platform: client(startup, "platform"),
            vdisk: client(startup, "vdisk"),
        }
    }

    /// Prints text as it is.
    pub fn print(&mut self, text: &str) -> Result<(), CallError> {
        let Some(console) = &mut self.console else { return Ok(()) };
        for piece in output::pieces(text) {
            console.call(&console::Request::Write(piece))?;
        }
        Ok(())
    }

    /// Carries out a command; the answer is what to print.
    pub fn carry_out(&mut self, command: &Command) -> String {
        let done = match command {
            Command::Help => Ok(supervisor::command::help()),
            Command::Servers => self.servers(),
            Command::Kill(name) => self.server(name, &init::Request::Kill(name), "it is not running"),
            Command::StartServer(name) => {
                self.server(name, &init::Request::Start(name), "it is running, or about to be restarted")
            }
            Command::Vms => self.vms(),
            Command::Start(name) if name.ends_with('*') => self.many(name, true),
            Command::Stop(name) if name.ends_with('*') => self.many(name, false),
            Command::Start(name) => self.vm(name, &loader::Request::Start(name), "it is running"),
            Command::Stop(name) => self.vm(name, &loader::Request::Stop(name), "it is not running"),
            Command::Memory => self.memory(),
            Command::Disks => self.disks(),
            Command::DiskCreate(name, blocks) => {
                self.disk(name, &vdisk::Request::Create { name: name.clone(), blocks: *blocks })
            }
            Command::DiskDelete(name) => self.disk(name, &vdisk::Request::Delete(name.clone())),
            Command::Devices => self.devices(),
            Command::PowerOff => self.end(&platform::Request::PowerOff { success: true }, "switched off"),
            Command::Reboot => self.end(&platform::Request::Reset, "reset"),
        };
        done.unwrap_or_else(|told| format!("{told}\n"))
    }

    fn servers(&mut self) -> Result<String, String> {
        match ask(&mut self.init, &init::Request::List, true)? {
            init::Response::Servers(servers) => Ok(show::servers(&servers)),
            other => Err(unexpected("init", &other)),
        }
    }

    /// A request about one server.
    fn server(&mut self, name: &str, request: &init::Request, wrong: &str) -> Result<String, String> {
        match ask(&mut self.init, request, false)? {
            init::Response::Done => Ok(String::new()),
            init::Response::Unknown => Err(format!("there is no server {name} (ps lists them)")),
            init::Response::WrongState => Err(format!("server {name}: {wrong}")),
            other @ init::Response::Servers(_) => Err(unexpected("init", &other)),
        }
    }

    fn vms(&mut self) -> Result<String, String> {
        let mut all = Vec::new();
        let mut from = 0;
        loop {
            match ask(&mut self.loader, &loader::Request::List { from }, true)? {
                loader::Response::Vms(vms, next) => {
                    all.extend(vms);
                    let more = next.filter(|next| *next > from);
                    match more {
                        Some(_) if all.len() >= VMS_SHOWN => {
                            return Ok(show::vms(&all) + "and more; only the first are shown\n");
                        }
                        Some(next) => from = next,
                        None => return Ok(show::vms(&all)),
                    }
                }
                other => return Err(unexpected("loader", &other)),
            }
        }
    }

    /// A request about one VM.
    fn vm(&mut self, name: &str, request: &loader::Request, wrong: &str) -> Result<String, String> {
        match ask(&mut self.loader, request, false)? {
            loader::Response::Done => Ok(String::new()),
            loader::Response::Unknown => Err(format!("there is no VM {name} (vms lists them)")),
            loader::Response::WrongState => Err(format!("VM {name}: {wrong}")),
            loader::Response::Failed(why) => Err(format!("VM {name}: {why}")),
            other => Err(unexpected("loader", &other)),
        }
    }

    /// Starts or stops all VMs whose names begin as a pattern does.
    fn many(&mut self, pattern: &str, start: bool) -> Result<String, String> {
        let prefix = pattern.trim_end_matches('*');
        let (mut from, mut all, mut failed) = (0, 0, 0);
        loop {
            let request = match start {
                true => loader::Request::StartAll { prefix, from },
                false => loader::Request::StopAll { prefix, from },
            };
            // What was done is not done again.
            match ask(&mut self.loader, &request, true)? {
                loader::Response::Many { done, refused, next } => {
                    (all, failed) = (all + done, failed + refused);
                    match next.filter(|next| *next > from) {
                        Some(next) => from = next,
                        None => return Ok(show::many(start, all, failed)),
                    }
                }
                other => return Err(unexpected("loader", &other)),
            }
        }
    }

    fn memory(&mut self) -> Result<String, String> {
        match ask(&mut self.loader, &loader::Request::Memory, true)? {
            loader::Response::Memory(info) => Ok(show::pool(&info)),
            other => Err(unexpected("loader", &other)),
        }
    }

    fn disks(&mut self) -> Result<String, String> {
        let mut all = Vec::new();
        let mut from = 0;
        loop {
            match ask(&mut self.vdisk, &vdisk::Request::List { from }, true)? {
                vdisk::Response::Disks(disks, next) => {
                    all.extend(disks);
                    match next.filter(|next| *next > from) {
                        Some(next) => from = next,
                        None => break,
                    }
                }
                vdisk::Response::NoStore(why) => return Err(format!("no virtual disks: {why}")),
                other => return Err(unexpected("vdisk", &other)),
            }
        }
        match ask(&mut self.vdisk, &vdisk::Request::Space, true)? {
            vdisk::Response::Space(blocks, free) => Ok(show::disks(&all, (blocks, free))),
            other => Err(unexpected("vdisk", &other)),
        }
    }

    /// A request about one virtual disk.
    fn disk(&mut self, name: &str, request: &vdisk::Request) -> Result<String, String> {
        match ask(&mut self.vdisk, request, false)? {
            vdisk::Response::Done => Ok(String::new()),
            vdisk::Response::NotFound => Err(format!("there is no virtual disk {name} (disks lists them)")),
            vdisk::Response::Exists => Err(format!("there is a virtual disk {name} already")),
            vdisk::Response::InUse => Err(format!("virtual disk {name}: a VM has it (stop the VM first)")),
            vdisk::Response::Full => Err("no room for a disk of this size, or for another disk".into()),
            vdisk::Response::BadArgument => {
                Err("the name of a virtual disk has 1 to 63 letters, digits, -, _ and .".into())
            }
            vdisk::Response::NoStore(why) => Err(format!("no virtual disks: {why}")),
            vdisk::Response::Failed(why) => Err(format!("virtual disk {name}: {why}")),
            other => Err(unexpected("vdisk", &other)),
        }
    }

    fn devices(&mut self) -> Result<String, String> {
        match ask(&mut self.platform, &platform::Request::List, true)? {
            platform::Response::Devices(devices) => Ok(show::devices(&devices)),
            other => Err(unexpected("platform", &other)),
        }
    }

    /// An end of the machine; an answer means that it goes on.
    fn end(&mut self, request: &platform::Request, done: &str) -> Result<String, String> {
        match ask(&mut self.platform, request, true)? {
            platform::Response::Denied => Err("the platform server does not let the supervisor end the machine".into()),
            _ => Err(format!("this machine cannot be {done} by software")),
        }
    }
}

fn unexpected(server: &str, response: &impl core::fmt::Debug) -> String {
    format!("{server}: unexpected answer {response:?}")
}
