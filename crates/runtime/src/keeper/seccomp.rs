//! The system calls that a sandbox may make, as one program made once and loaded per sandbox.
//!
//! What Docker's default profile refuses is refused: calls that change the machine, other
//! processes, namespaces or mounts, and kernel surface that served exploits before. Calls newer than
//! this list are answered `ENOSYS`, so that programs fall back to the ones that are known here. The
//! program is a binary tree over call numbers: a call costs about nine comparisons, and loading it
//! is cheap because allowed numbers collapse into ranges.

use seccompiler::{BpfProgram, sock_filter};

/// One past the newest call that is known here (`mseal`; later ones are answered `ENOSYS`).
const NEWEST: i64 = 463;

/// Calls that are refused with `EPERM`.
#[rustfmt::skip]
const REFUSED: &[i64] = &[
    // the machine
    libc::SYS_acct, libc::SYS_adjtimex, libc::SYS_clock_adjtime, libc::SYS_clock_settime,
    libc::SYS_settimeofday, libc::SYS_reboot, libc::SYS_sethostname, libc::SYS_setdomainname,
    libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_syslog, libc::SYS_vhangup, libc::SYS_quotactl,
    libc::SYS_quotactl_fd, libc::SYS_nfsservctl,
    // the kernel's own code
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load,
    libc::SYS_kexec_file_load, libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_lookup_dcookie,
    // mounts and namespaces
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare,
    libc::SYS_setns, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at, libc::SYS_fanotify_init,
    // other processes
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd, libc::SYS_kcmp, libc::SYS_process_madvise, libc::SYS_process_mrelease,
    // keys, which no namespace separates
    libc::SYS_add_key, libc::SYS_keyctl, libc::SYS_request_key,
    // surface
    libc::SYS_userfaultfd, libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_get_mempolicy,
    libc::SYS_migrate_pages, libc::SYS_move_pages,
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const REFUSED_HERE: &[i64] = &[
    libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_uselib, libc::SYS_ustat, libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// Calls that are answered `ENOSYS`: `clone3` has its flags in memory, where no filter sees them
/// (the C library then uses `clone`), and nothing expects `io_uring` to be there.
const ABSENT: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// `CLONE_NEW*`, `CLONE_NEWTIME` apart, which `clone` reads as part of the exit signal.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0000 | 38;
const EAFNOSUPPORT: u32 = 0x0005_0000 | 97;

// Where `struct seccomp_data` keeps what is looked at; the low half of each argument.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

// Operations of classic BPF.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

const fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// A comparison: skip `jt` instructions if it holds, else `jf`.
const fn test(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// What happens to a range of calls.
#[derive(Clone, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    /// Instructions that look at arguments and return.
    Look(Vec<(u16, u32, u8, u8)>),
}

fn verdict(number: i64) -> Verdict {
    if ABSENT.contains(&number) {
        return Verdict::Return(ENOSYS);
    }
    if REFUSED.contains(&number) || REFUSED_HERE.contains(&number) {
        return Verdict::Return(EPERM);
    }
    let ret = |value| (RETURN, value, 0, 0);
    match number {
        libc::SYS_clone => Verdict::Look(vec![
            (LOAD, argument(0), 0, 0),
            (JUMP_SET, NEW_NAMESPACES, 0, 1),
            ret(EPERM),
            ret(ALLOW),
        ]),
        // Pushing characters into somebody's terminal.
        libc::SYS_ioctl => Verdict::Look(vec![
            (LOAD, argument(1), 0, 0),
            (JUMP_EQUAL, 0x5412, 1, 0),
            (JUMP_EQUAL, 0x541c, 0, 1),
            ret(EPERM),
            ret(ALLOW),
        ]),
        // AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; the rest is rarely used code.
        libc::SYS_socket => Verdict::Look(vec![
            (LOAD, argument(0), 0, 0),
            (JUMP_EQUAL, 1, 4, 0),
            (JUMP_EQUAL, 2, 3, 0),
            (JUMP_EQUAL, 10, 2, 0),
            (JUMP_EQUAL, 16, 1, 0),
            ret(EAFNOSUPPORT),
            ret(ALLOW),
        ]),
        libc::SYS_personality => Verdict::Look(vec![
            (LOAD, argument(0), 0, 0),
            (JUMP_EQUAL, 0, 2, 0),
            (JUMP_EQUAL, 0xffff_ffff, 1, 0),
            ret(EPERM),
            ret(ALLOW),
        ]),
        _ => Verdict::Return(ALLOW),
    }
}

/// The program.
pub(crate) fn program() -> BpfProgram {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for number in 0..NEWEST {
        let verdict = verdict(number);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((u32::try_from(number).unwrap_or(u32::MAX), verdict));
        }
    }
    // Also the calls of the x32 interface, whose numbers start at 2^30.
    ranges.push((u32::try_from(NEWEST).unwrap_or(u32::MAX), Verdict::Return(ENOSYS)));
    let mut program = vec![
        op(LOAD, ARCH),
        test(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        op(RETURN, KILL),
        op(LOAD, NUMBER),
    ];
    program.extend(tree(&ranges));
    program
}

/// Instructions that find the range of the number loaded. The first range's start is known to hold.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    match ranges {
        [] => Vec::new(),
        [(_, Verdict::Return(value))] => vec![op(RETURN, *value)],
        [(_, Verdict::Look(instructions))] => {
            instructions.iter().map(|&(code, k, jt, jf)| test(code, k, jt, jf)).collect()
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let boundary = high.first().map_or(0, |(start, _)| *start);
            let (low, high) = (tree(low), tree(high));
            // A conditional jump reaches 255 instructions; a plain one reaches everything.
            let mut program = match u8::try_from(low.len()) {
                Ok(skip) => vec![test(JUMP_AT_LEAST, boundary, skip, 0)],
                Err(_too_far) => vec![
                    test(JUMP_AT_LEAST, boundary, 0, 1),
                    op(JUMP, u32::try_from(low.len()).unwrap_or(u32::MAX)),
                ],
            };
            program.extend(low);
            program.extend(high);
            program
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says to a call, by interpreting it as the kernel does.
    fn run(program: &[sock_filter], number: i64, first: u32, second: u32) -> u32 {
        let (mut at, mut loaded) = (0_usize, 0_u32);
        loop {
            let i = &program[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LOAD if i.k == ARCH => loaded = ARCHITECTURE,
                LOAD if i.k == NUMBER => loaded = u32::try_from(number).expect("a number"),
                LOAD if i.k == argument(0) => loaded = first,
                LOAD => loaded = second,
                JUMP => at += i.k as usize,
                JUMP_EQUAL => at += jump(loaded == i.k),
                JUMP_AT_LEAST => at += jump(loaded >= i.k),
                JUMP_SET => at += jump(loaded & i.k != 0),
                RETURN => return i.k,
                other => panic!("unknown operation {other}"),
            }
        }
    }

    #[test]
    fn each_known_call_gets_its_verdict() {
        let program = program();
        for number in 0..NEWEST {
            let want = match verdict(number) {
                Verdict::Return(value) => value,
                Verdict::Look(_) => continue,
            };
            assert_eq!(run(&program, number, 0, 0), want, "call {number}");
        }
        assert_eq!(run(&program, 5000, 0, 0), ENOSYS);
        assert_eq!(run(&program, 0x4000_0000, 0, 0), ENOSYS);
        assert!(program.len() < 400, "{} instructions", program.len());
    }

    #[test]
    fn arguments_are_looked_at() {
        let program = program();
        assert_eq!(run(&program, libc::SYS_clone, 0x3d_0f00, 0), ALLOW);
        assert_eq!(run(&program, libc::SYS_clone, 0x1000_0000, 0), EPERM);
        assert_eq!(run(&program, libc::SYS_ioctl, 0, 0x5412), EPERM);
        assert_eq!(run(&program, libc::SYS_ioctl, 0, 0x541c), EPERM);
        assert_eq!(run(&program, libc::SYS_ioctl, 0, 0x5413), ALLOW);
        for (family, want) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW)] {
            assert_eq!(run(&program, libc::SYS_socket, family, 0), want);
        }
        assert_eq!(run(&program, libc::SYS_socket, 40, 0), EAFNOSUPPORT);
        assert_eq!(run(&program, libc::SYS_personality, 0, 0), ALLOW);
        assert_eq!(run(&program, libc::SYS_personality, 4, 0), EPERM);
    }
}
