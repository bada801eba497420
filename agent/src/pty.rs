//! Pseudo-terminals (RFC 4254, sections 6.2, 6.7 and 8).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{Winsize, openpty},
    sys::termios::{self, ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, Termios},
    unistd::ttyname,
};
use russh::Pty as Mode;
use tokio::io::{Interest, unix::AsyncFd};

/// Longest `TERM` that is taken from a client.
const TERM_MAX: usize = 64;

/// What the client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub term: String,
    pub size: Size,
    pub modes: Vec<(Mode, u32)>,
}

impl Request {
    /// The client's `TERM`, or one that every image knows when it is not a plain name.
    pub fn term(&self) -> &str {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
        let good = (1..=TERM_MAX).contains(&self.term.len()) && self.term.bytes().all(plain);
        if good { &self.term } else { "xterm" }
    }
}

/// In characters and in pixels. Values that do not fit are cut to what the kernel can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: u32,
    pub rows: u32,
    pub width: u32,
    pub height: u32,
}

impl Size {
    fn winsize(self) -> Winsize {
        let fit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        Winsize {
            ws_row: fit(self.rows),
            ws_col: fit(self.columns),
            ws_xpixel: fit(self.width),
            ws_ypixel: fit(self.height),
        }
    }
}

/// Our end. Closing it hangs up on the programs at the other one.
#[derive(Debug)]
pub struct Master(AsyncFd<OwnedFd>);

pub struct Pair {
    pub master: Master,
    pub slave: OwnedFd,
    pub name: Option<PathBuf>,
}

pub fn open(request: &Request) -> io::Result<Pair> {
    let pair = openpty(Some(&request.size.winsize()), None)?;
    for end in [&pair.master, &pair.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut settings = termios::tcgetattr(&pair.slave)?;
    for &(mode, value) in &request.modes {
        apply(&mut settings, mode, value);
    }
    termios::tcsetattr(&pair.slave, SetArg::TCSANOW, &settings)?;
    let name = ttyname(&pair.slave).ok();
    // SAFETY: an owned descriptor stays the same until it is dropped.
    let master = unsafe { AsyncFd::register(pair.master) }?;
    Ok(Pair { master: Master(master), slave: pair.slave, name })
}

impl Master {
    pub fn resize(&self, size: Size) {
        let size = size.winsize();
        // SAFETY: the descriptor is ours and `size` outlives the call. A failure is the program's
        // end, which is seen elsewhere.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    }

    /// 0 at the end: nobody has the other end open.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| read(fd, buffer)).await
    }

    /// `None` when there is nothing to read now.
    pub fn try_read(&self, buffer: &mut [u8]) -> Option<usize> {
        read(self.0.get_ref(), buffer).ok()
    }

    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await
    }
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match nix::unistd::read(fd, buffer) {
        // Linux's way to say that the other end is closed.
        Err(nix::errno::Errno::EIO) => Ok(0),
        other => Ok(other?),
    }
}

/// One mode of RFC 4254, section 8. Speeds and what Linux lacks are passed over.
fn apply(settings: &mut Termios, mode: Mode, value: u32) {
    use termios::SpecialCharacterIndices as Char;
    let character = match mode {
        Mode::VINTR => Some(Char::VINTR),
        Mode::VQUIT => Some(Char::VQUIT),
        Mode::VERASE => Some(Char::VERASE),
        Mode::VKILL => Some(Char::VKILL),
        Mode::VEOF => Some(Char::VEOF),
        Mode::VEOL => Some(Char::VEOL),
        Mode::VEOL2 => Some(Char::VEOL2),
        Mode::VSTART => Some(Char::VSTART),
        Mode::VSTOP => Some(Char::VSTOP),
        Mode::VSUSP => Some(Char::VSUSP),
        Mode::VREPRINT => Some(Char::VREPRINT),
        Mode::VWERASE => Some(Char::VWERASE),
        Mode::VLNEXT => Some(Char::VLNEXT),
        Mode::VDISCARD => Some(Char::VDISCARD),
        _ => None,
    };
    if let Some(character) = character {
        // 255 says that the character is off, which Linux writes as 0.
        let byte = u8::try_from(value).ok().filter(|byte| *byte != 255).unwrap_or(0);
        if let Some(place) = settings.control_chars.get_mut(character as usize) {
            *place = byte;
        }
        return;
    }
    let on = value != 0;
    match mode {
        Mode::IGNPAR => settings.input_flags.set(InputFlags::IGNPAR, on),
        Mode::PARMRK => settings.input_flags.set(InputFlags::PARMRK, on),
        Mode::INPCK => settings.input_flags.set(InputFlags::INPCK, on),
        Mode::ISTRIP => settings.input_flags.set(InputFlags::ISTRIP, on),
        Mode::INLCR => settings.input_flags.set(InputFlags::INLCR, on),
        Mode::IGNCR => settings.input_flags.set(InputFlags::IGNCR, on),
        Mode::ICRNL => settings.input_flags.set(InputFlags::ICRNL, on),
        Mode::IXON => settings.input_flags.set(InputFlags::IXON, on),
        Mode::IXANY => settings.input_flags.set(InputFlags::IXANY, on),
        Mode::IXOFF => settings.input_flags.set(InputFlags::IXOFF, on),
        Mode::IMAXBEL => settings.input_flags.set(InputFlags::IMAXBEL, on),
        Mode::IUTF8 => settings.input_flags.set(InputFlags::IUTF8, on),
        Mode::ISIG => settings.local_flags.set(LocalFlags::ISIG, on),
        Mode::ICANON => settings.local_flags.set(LocalFlags::ICANON, on),
        Mode::ECHO => settings.local_flags.set(LocalFlags::ECHO, on),
        Mode::ECHOE => settings.local_flags.set(LocalFlags::ECHOE, on),
        Mode::ECHOK => settings.local_flags.set(LocalFlags::ECHOK, on),
        Mode::ECHONL => settings.local_flags.set(LocalFlags::ECHONL, on),
        Mode::NOFLSH => settings.local_flags.set(LocalFlags::NOFLSH, on),
        Mode::TOSTOP => settings.local_flags.set(LocalFlags::TOSTOP, on),
        Mode::IEXTEN => settings.local_flags.set(LocalFlags::IEXTEN, on),
        Mode::ECHOCTL => settings.local_flags.set(LocalFlags::ECHOCTL, on),
        Mode::ECHOKE => settings.local_flags.set(LocalFlags::ECHOKE, on),
        Mode::OPOST => settings.output_flags.set(OutputFlags::OPOST, on),
        Mode::ONLCR => settings.output_flags.set(OutputFlags::ONLCR, on),
        Mode::OCRNL => settings.output_flags.set(OutputFlags::OCRNL, on),
        Mode::ONOCR => settings.output_flags.set(OutputFlags::ONOCR, on),
        Mode::ONLRET => settings.output_flags.set(OutputFlags::ONLRET, on),
        Mode::PARENB => settings.control_flags.set(ControlFlags::PARENB, on),
        Mode::PARODD => settings.control_flags.set(ControlFlags::PARODD, on),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(term: &str, modes: Vec<(Mode, u32)>) -> Request {
        let size = Size { columns: 132, rows: 43, width: 0, height: 1 << 20 };
        Request { term: term.to_owned(), size, modes }
    }

    #[test]
    fn a_terminal_name_that_is_no_name_is_replaced() {
        assert_eq!(request("xterm-256color", vec![]).term(), "xterm-256color");
        for bad in ["", "a b", "x\n", "../x", &"x".repeat(65)] {
            assert_eq!(request(bad, vec![]).term(), "xterm", "{bad:?}");
        }
    }

    #[tokio::test]
    async fn modes_and_size_reach_the_other_end() {
        let modes = vec![(Mode::ECHO, 0), (Mode::VINTR, 7), (Mode::VEOF, 255), (Mode::ONLCR, 0)];
        let pair = open(&request("xterm", modes)).unwrap();
        let settings = termios::tcgetattr(&pair.slave).unwrap();
        assert!(!settings.local_flags.contains(LocalFlags::ECHO));
        assert!(!settings.output_flags.contains(OutputFlags::ONLCR));
        assert_eq!(settings.control_chars[libc::VINTR], 7);
        assert_eq!(settings.control_chars[libc::VEOF], 0);
        pair.master.resize(Size { columns: 80, rows: 25, width: 0, height: 0 });
        // SAFETY: plain data that the call fills in.
        let mut size: Winsize = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and `size` outlives the call.
        unsafe { libc::ioctl(pair.slave.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
        assert_eq!((size.ws_col, size.ws_row), (80, 25));
        drop(pair.slave);
        assert_eq!(pair.master.read(&mut [0; 8]).await.unwrap(), 0, "closed is an end");
    }
}
