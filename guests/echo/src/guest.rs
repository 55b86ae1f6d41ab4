//! The two services.

extern crate alloc;

use alloc::vec;
use ilwaco::{
    Spawner,
    embassy_net::{
        Stack,
        tcp::TcpSocket,
        udp::{PacketMetadata, UdpSocket},
    },
    embassy_time::Duration,
    println,
};

ilwaco::entry!(main, memory = 512 * 1024, nic = 16, console);

/// The echo service's port.
const PORT: u16 = 7;
/// TCP connections at a time.
const CONNECTIONS: usize = 4;
/// A peer that says nothing for this long is disconnected.
const TIMEOUT: Duration = Duration::from_secs(60);

async fn main(spawner: Spawner) {
    let stack = ilwaco::net::start::<{ CONNECTIONS + 1 }>(spawner);
    for _ in 0..CONNECTIONS {
        spawner.spawn(ilwaco::task(tcp(stack)));
    }
    match ilwaco::vm::network() {
        Some(network) => println!("echo on TCP and UDP {}:{PORT}", network.address),
        None => println!("echo: this VM has no address"),
    }
    udp(stack).await;
}

async fn tcp(stack: Stack<'static>) {
    let (mut receive, mut send, mut buffer) = (vec![0; 2048], vec![0; 2048], vec![0; 1024]);
    loop {
        let mut socket = TcpSocket::new(stack, &mut receive, &mut send);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_nagle_enabled(false);
        if socket.accept(PORT).await.is_err() {
            continue;
        }
        while let Ok(count @ 1..) = socket.read(&mut buffer).await {
            if ilwaco::net::write_all(&mut socket, &buffer[..count]).await.is_err() {
                break;
            }
        }
        socket.close();
        let _ = socket.flush().await;
    }
}

async fn udp(stack: Stack<'static>) {
    let (mut receive_list, mut send_list) = ([PacketMetadata::EMPTY; 8], [PacketMetadata::EMPTY; 8]);
    let (mut receive, mut send, mut buffer) = (vec![0; 4096], vec![0; 4096], vec![0; 1500]);
    let mut socket = UdpSocket::new(stack, &mut receive_list, &mut receive, &mut send_list, &mut send);
    socket.bind(PORT).expect("the port is not 0 and nothing else is bound");
    loop {
        // A datagram too long for the buffer is dropped.
        if let Ok((count, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..count], peer).await;
        }
    }
}
