// The loop of a fork server and what each of its children takes away from itself.
//
// Not in Python, since each page that either side of a fork writes to is copied for it, and an
// interpreter writes to more than a hundred of them for the same work. No Python headers: any
// interpreter loads this by ctypes.
#include <dirent.h>
#include <fcntl.h>
#include <link.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kSlots = 5;  // orders.SLOTS
constexpr unsigned kLastDescriptor = 127;
constexpr size_t kMaxMessage = 4096;
constexpr uint32_t kOwnPid = 0x0BADCAFE;  // seccomp.OWN_PID
constexpr int kRestrictSelf = 446;        // landlock_restrict_self, the same number everywhere
constexpr int kCloseRange = 436;

#pragma pack(push, 1)
struct Order {  // orders.ORDER
    uint8_t role, mask;
    uint32_t cpu_seconds;
    uint64_t memory;
};
struct Exit {  // orders.EXIT
    int32_t pid, status;
    double cpu_seconds;
};
#pragma pack(pop)

constexpr size_t kMaxEnded = (kMaxMessage - sizeof(int32_t)) / sizeof(Exit);
constexpr int kMaxChildren = 64;

enum Event { kHangUp, kGuest, kReferee, kDirty, kStrays };  // native.Event

}  // namespace

extern "C" {

// native.Server; -1 and 0 stand for what a level lacks.
struct Server {
    int32_t host;               // the socket
    int32_t life;               // a pidfd of this process: tells a child that its server is gone
    int32_t scratch;            // the scratch folder
    int32_t rules[2];           // Landlock rulesets of a guest and of a referee
    int32_t new_pid_namespace;  // each child is process 1 of its own
    int32_t new_session;        // each child leads a session
    int32_t drop_capabilities;
    int32_t watch_strays;   // hand back to Python after a child has ended
    int32_t filter_length;  // the seccomp filter of a child
    struct sock_filter* filter;
    uint64_t base_memory, most_memory, tasks;
    // The state of the loop.
    int32_t forking, order_fds, ended, children;
    int32_t fds[8];
    int32_t pids[kMaxChildren];
    struct Order order;
    struct Exit exits[kMaxEnded];
};
}

namespace {

bool receive(Server* s, unsigned char* data, size_t* size) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof s->fds)];
    iovec part{data, kMaxMessage};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t got;
    while ((got = recvmsg(s->host, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
    }
    if (got < static_cast<ssize_t>(sizeof(Order)) || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        return false;
    }
    *size = static_cast<size_t>(got);
    s->order_fds = 0;
    if (cmsghdr* head = CMSG_FIRSTHDR(&message);
        head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        s->order_fds = static_cast<int32_t>((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        std::memcpy(s->fds, CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
    }
    return true;
}

// Kills a child, if it still lives, and notes how it ended.
bool end(Server* s, int32_t pid) {
    int32_t* known = std::find(s->pids, s->pids + s->children, pid);
    if (known == s->pids + s->children || s->ended == static_cast<int32_t>(kMaxEnded)) return false;
    *known = s->pids[--s->children];
    kill(pid, SIGKILL);
    int status;
    rusage used;
    while (wait4(pid, &status, 0, &used) < 0) {
        if (errno != EINTR) return false;
    }
    const auto seconds = [](const timeval& t) {
        return double(t.tv_sec) + 1e-6 * double(t.tv_usec);
    };
    s->exits[s->ended++] = {pid, status, seconds(used.ru_utime) + seconds(used.ru_stime)};
    return true;
}

bool dirty(int folder) {
    alignas(dirent64) char entries[sizeof(dirent64)];
    lseek(folder, 0, SEEK_SET);
    long size;
    // One call may return "." and ".." alone, where the next name is too long to come with them.
    while ((size = syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0) {
        for (long at = 0; at < size;) {
            const auto* entry = reinterpret_cast<const dirent64*>(entries + at);
            if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0)
                return true;
            at += entry->d_reclen;
        }
    }
    return size < 0;
}

bool answer(Server* s, pid_t pid) {
    iovec parts[] = {{&pid, sizeof pid}, {s->exits, sizeof(Exit) * static_cast<size_t>(s->ended)}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
    if (pid && s->new_pid_namespace) {  // the kernel translates the process id for the host
        const ucred self{pid, getuid(), getgid()};
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr* head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_CREDENTIALS;
        head->cmsg_len = CMSG_LEN(sizeof self);
        std::memcpy(CMSG_DATA(head), &self, sizeof self);
    }
    s->ended = 0;
    ssize_t sent;
    while ((sent = sendmsg(s->host, &message, MSG_NOSIGNAL)) < 0 && errno == EINTR) {
    }
    return sent >= 0;
}

// The C library's fork without the handlers around it, which a process of one thread does without.
extern "C" pid_t _Fork() noexcept __attribute__((weak));

// The raw call leaves alone the thread id that the C library remembers: in a new namespace both
// sides are process 1.
pid_t fork_child(const Server* s) {
    if (!s->new_pid_namespace) return _Fork ? _Fork() : fork();
    return static_cast<pid_t>(syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0));
}

bool limit(decltype(RLIMIT_AS) which, rlim_t value) {
    rlimit bounds;
    if (getrlimit(which, &bounds)) return false;
    bounds.rlim_cur = bounds.rlim_max = std::min(value, bounds.rlim_max);
    return setrlimit(which, &bounds) == 0;
}

// Completes the filter: a child may signal itself alone.
void name_own_pid(Server* s, pid_t pid) {
    for (sock_filter* at = s->filter; at != s->filter + s->filter_length; ++at) {
        if (at->k == kOwnPid) at->k = static_cast<uint32_t>(pid);
    }
}

// Confines the calling child for good and gives it its descriptors.
bool bind_child(Server* s) {
    const Order& order = s->order;
    if (!limit(RLIMIT_AS, std::min(s->base_memory + order.memory, s->most_memory))) return false;
    if (!limit(RLIMIT_CPU, order.cpu_seconds)) return false;
    const int rules = s->rules[order.role - 1];
    if (rules >= 0 && syscall(kRestrictSelf, rules, 0)) return false;
    if (s->drop_capabilities) {
        __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
        const __user_cap_data_struct none[2]{};
        if (syscall(SYS_capset, &header, none)) return false;
    }
    if (!s->new_pid_namespace) {  // the user is shared, and no namespace ends with the server
        if (s->tasks && !limit(RLIMIT_NPROC, s->tasks)) return false;
        if (s->new_session) setsid();
        if (prctl(PR_SET_PDEATHSIG, SIGKILL)) return false;
        pollfd life{s->life, POLLIN, 0};
        if (poll(&life, 1, 0)) return false;  // the server died before the line above
    }
    if (s->filter_length) {
        if (!s->new_pid_namespace) name_own_pid(s, getpid());
        const sock_fprog program{static_cast<unsigned short>(s->filter_length), s->filter};
        if (prctl(PR_SET_SECCOMP, 2, &program, 0, 0)) return false;
    }
    int next = 0;
    for (int slot = 0; slot < kSlots; ++slot) {
        if (order.mask >> slot & 1) {
            if (next == s->order_fds || dup2(s->fds[next++], slot) < 0) return false;
        } else {
            close(slot);  // something of the server
            // An inherited open file would share its flags with every other child.
            if (slot <= STDERR_FILENO && open("/dev/null", O_RDWR) != slot) return false;
        }
    }
    return syscall(kCloseRange, kSlots, kLastDescriptor, 0) == 0;
}

}  // namespace

extern "C" {

// So that Python finds out when it holds another idea of `Server`.
size_t bdc_server_size() { return sizeof(Server); }

// Serves the host. Returns in a child with its role; in the server when the host hung up or an
// order cannot be carried out, and when Python has to do something before the call is repeated:
// empty the scratch folder, or end strays.
int bdc_serve(Server* s) {
    if (s->new_pid_namespace) name_own_pid(s, 1);
    for (;;) {
        if (!s->forking) {
            unsigned char data[kMaxMessage];
            size_t size;
            if (!receive(s, data, &size)) return kHangUp;
            std::memcpy(&s->order, data, sizeof(Order));
            s->forking = 1;
            for (size_t at = sizeof(Order); at + sizeof(int32_t) <= size; at += sizeof(int32_t)) {
                int32_t pid;
                std::memcpy(&pid, data + at, sizeof pid);
                if (!end(s, pid)) return kHangUp;
            }
            if (s->watch_strays && s->ended) return kStrays;
        }
        pid_t pid = 0;
        if (s->order.role) {
            if (s->scratch >= 0 && s->children == 0 && dirty(s->scratch)) return kDirty;
            if (s->order.role > kReferee || s->children == kMaxChildren) return kHangUp;
            pid = fork_child(s);
            if (pid < 0) return kHangUp;
            if (pid == 0) {
                if (!bind_child(s)) _exit(127);
                return s->order.role;
            }
            s->pids[s->children++] = pid;
            for (int i = 0; i < s->order_fds; ++i) close(s->fds[i]);
        }
        s->forking = 0;
        if (!answer(s, pid)) return kHangUp;
    }
}

// Prepares the process for many forks. The free pages of the heap go back to the kernel. And each
// fork will copy the page tables of code and constants, which is several times cheaper than the
// page faults by which a child would find them again: the kernel does so where a mapping holds a
// private page, so the first page of each is written to, with what it holds.
void bdc_settle() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    dl_iterate_phdr(
        [](dl_phdr_info* object, size_t, void*) {
            const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
            for (int i = 0; i < object->dlpi_phnum; ++i) {
                const auto& part = object->dlpi_phdr[i];
                if (part.p_type != PT_LOAD || part.p_flags & PF_W) continue;
                const uintptr_t from = (object->dlpi_addr + part.p_vaddr) & ~(page - 1);
                const size_t size = object->dlpi_addr + part.p_vaddr + part.p_memsz - from;
                auto* first = reinterpret_cast<volatile char*>(from);
                const int allowed =
                    (part.p_flags & PF_R ? PROT_READ : 0) | (part.p_flags & PF_X ? PROT_EXEC : 0);
                if (mprotect(reinterpret_cast<void*>(from), size, allowed | PROT_WRITE)) continue;
                *first = *first;
                mprotect(reinterpret_cast<void*>(from), size, allowed);
            }
            return 0;
        },
        nullptr);
}
}
