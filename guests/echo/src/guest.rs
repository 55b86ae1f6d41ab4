//! The two services.

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
use static_cell::ConstStaticCell;

ilwaco::entry!(main, memory = 512 * 1024, nic = 16, console);

/// The echo service's port.
const PORT: u16 = 7;
/// TCP connections at a time.
const CONNECTIONS: usize = 4;
/// A peer that says nothing for this long is disconnected.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The memory of one connection, or of the datagrams. A static is untouched, and so without cost, until it is used.
struct Memory<const BUFFER: usize, const PIECE: usize> {
    receive: [u8; BUFFER],
    send: [u8; BUFFER],
    piece: [u8; PIECE],
}

impl<const BUFFER: usize, const PIECE: usize> Memory<BUFFER, PIECE> {
    const NEW: Memory<BUFFER, PIECE> = Memory { receive: [0; BUFFER], send: [0; BUFFER], piece: [0; PIECE] };
}

type TcpMemory = Memory<2048, 1024>;
type UdpMemory = Memory<4096, 1500>;
// One cell: each is marked as taken at its end, where another page would be touched for it.
static MEMORY: ConstStaticCell<([TcpMemory; CONNECTIONS], UdpMemory)> =
    ConstStaticCell::new(([TcpMemory::NEW; CONNECTIONS], UdpMemory::NEW));

async fn main(spawner: Spawner) {
    let stack = ilwaco::net::start::<{ CONNECTIONS + 1 }>(spawner);
    let (connections, datagrams) = MEMORY.take();
    for memory in connections {
        spawner.spawn(ilwaco::task(tcp(stack, memory)));
    }
    match ilwaco::vm::network() {
        Some(network) => println!("echo on TCP and UDP {}:{PORT}", network.address),
        None => println!("echo: this VM has no address"),
    }
    udp(stack, datagrams).await;
}

async fn tcp(stack: Stack<'static>, memory: &mut TcpMemory) {
    loop {
        let mut socket = TcpSocket::new(stack, &mut memory.receive, &mut memory.send);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_nagle_enabled(false);
        if socket.accept(PORT).await.is_err() {
            continue;
        }
        while let Ok(count @ 1..) = socket.read(&mut memory.piece).await {
            if ilwaco::net::write_all(&mut socket, &memory.piece[..count]).await.is_err() {
                break;
            }
        }
        socket.close();
        let _ = socket.flush().await;
    }
}

async fn udp(stack: Stack<'static>, memory: &mut UdpMemory) {
    let (mut receive_list, mut send_list) = ([PacketMetadata::EMPTY; 8], [PacketMetadata::EMPTY; 8]);
    let Memory { receive, send, piece } = memory;
    let mut socket = UdpSocket::new(stack, &mut receive_list, receive, &mut send_list, send);
    socket.bind(PORT).expect("the port is not 0 and nothing else is bound");
    loop {
        // A datagram too long for the buffer is dropped.
        if let Ok((count, peer)) = socket.recv_from(piece).await {
            let _ = socket.send_to(&piece[..count], peer).await;
        }
    }
}
