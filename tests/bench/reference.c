/* The C reference of the benchmarks: what each figure of ours is compared with, in the same run.
 *
 * Built as a shared library and called in turn with ours, so that both see the same minute of the same machine.
 * Every function returns nanoseconds, or -errno. Nothing of what it makes outlives the call: children die with
 * their parent, descriptors are closed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_READ = 0, WAIT_EPOLL = 1, EVENTS_MAX = 64, ROUND_TRIPS_WARMING = 500, BACKLOG_MAX = 256 };

static const uint64_t ONE = 1;

static int64_t read_clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t now_ns(void)
{
    return read_clock_ns(CLOCK_MONOTONIC);
}

/* CPU time: preemption does not count. */
static int64_t used_ns(void)
{
    return read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static int place(int cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return 0;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

/* A child that dies with its parent; 0 in the child. */
static pid_t fork_tied(void)
{
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
    }
    return child;
}

static int reap(pid_t child)
{
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ECHILD;
}

/* Doorbells */

/* `doorbells` writes of 8 bytes to eventfds, in turn. */
int64_t write_doorbells(const int *lines, int size, int64_t doorbells)
{
    int64_t begin_ns = used_ns();
    int at = 0;
    while (doorbells-- > 0) {
        if (write(lines[at], &ONE, sizeof ONE) != sizeof ONE)
            return -errno;
        if (++at == size)
            at = 0;
    }
    return used_ns() - begin_ns;
}

/* Wake-ups */

static int await(int line, int how, int epoll)
{
    uint64_t count;
    struct epoll_event event;
    if (how == WAIT_EPOLL && epoll_wait(epoll, &event, 1, -1) != 1)
        return -1;
    return read(line, &count, sizeof count) == sizeof count ? 0 : -1;
}

static void play(int own, int other, int how, int cpu, int serves, int64_t *stamps, int64_t round_trips)
{
    struct epoll_event interest = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (place(cpu) || epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, own, &interest))
        _exit(1);
    for (int64_t at = 0; at < round_trips + ROUND_TRIPS_WARMING; at++) {
        if (serves && write(other, &ONE, sizeof ONE) != sizeof ONE)
            _exit(1);
        if (await(own, how, epoll))
            _exit(1);
        if (serves && at >= ROUND_TRIPS_WARMING)
            stamps[at - ROUND_TRIPS_WARMING] = now_ns();
        if (!serves && write(other, &ONE, sizeof ONE) != sizeof ONE)
            _exit(1);
    }
    _exit(0);
}

/* Two processes ring each other; `stamps` gets the moment at which each round trip was over. */
int64_t ping_pong(int how, int cpu, int other_cpu, int64_t *stamps, int64_t round_trips)
{
    int flags = EFD_CLOEXEC | (how == WAIT_EPOLL ? EFD_NONBLOCK : 0);
    int there = eventfd(0, flags), back = eventfd(0, flags);
    size_t size = round_trips * sizeof *stamps;
    int64_t *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int64_t begin_ns = now_ns(), result = 0;
    pid_t ping, pong;
    if (there < 0 || back < 0 || shared == MAP_FAILED)
        return -errno;
    if ((ping = fork_tied()) == 0)
        play(back, there, how, cpu, 1, shared, round_trips);
    if ((pong = fork_tied()) == 0)
        play(there, back, how, other_cpu, 0, shared, round_trips);
    if (ping < 0 || pong < 0)
        result = -EAGAIN;
    if (ping > 0) {
        if (pong < 0)
            kill(ping, SIGKILL);
        if (reap(ping)) {
            result = -ECHILD;
            if (pong > 0)
                kill(pong, SIGKILL);
        }
    }
    if (pong > 0 && reap(pong))
        result = -ECHILD;
    memcpy(stamps, shared, size);
    munmap(shared, size);
    close(there);
    close(back);
    return result ? result : now_ns() - begin_ns;
}

/* Storms */

struct account {
    int64_t rung, refused, delivered, interrupts, cpu_ns;
};

struct storm {
    volatile int stop;
    struct account accounts[];
};

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* One machine: `burst` doorbells, then a look at the own interrupts, until there are none; and again. */
static void storm_machine(struct storm *storm, const int *lines, int machines, int vectors, int machine, int burst)
{
    struct account *account = &storm->accounts[machine];
    struct epoll_event events[EVENTS_MAX];
    int size = (machines - 1) * vectors, at = 0, epoll = epoll_create1(EPOLL_CLOEXEC);
    int *others = malloc(size * sizeof *others);
    uint64_t state = 88172645463325252u + machine, count;
    if (others == NULL || epoll < 0)
        _exit(1);
    for (int line = 0, to = 0; line < machines * vectors; line++)
        if (line / vectors != machine)
            others[to++] = lines[line];
    for (int left = size - 1; left > 0; left--) {
        int with = draw(&state) % (left + 1), other = others[with];
        others[with] = others[left];
        others[left] = other;
    }
    for (int vector = 0; vector < vectors; vector++) {
        struct epoll_event interest = {.events = EPOLLIN, .data.fd = lines[machine * vectors + vector]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, interest.data.fd, &interest))
            _exit(1);
    }
    account->cpu_ns = -read_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    while (!storm->stop) {
        for (int doorbell = 0; doorbell < burst; doorbell++) {
            if (write(others[at], &ONE, sizeof ONE) != sizeof ONE)
                account->refused++;
            if (++at == size)
                at = 0;
        }
        account->rung += burst;
        for (int ready; (ready = epoll_wait(epoll, events, EVENTS_MAX, 0)) > 0;)
            while (ready-- > 0)
                if (read(events[ready].data.fd, &count, sizeof count) == sizeof count) {
                    account->delivered += count;
                    account->interrupts++;
                }
    }
    account->cpu_ns += read_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    _exit(0);
}

static void run_storm_machine(struct storm *storm, const int *lines, int machines, int vectors, int machine,
                              int burst, const int *gate)
{
    char nothing;
    close(gate[1]);
    if (read(gate[0], &nothing, 1) != 0)
        _exit(1);
    storm_machine(storm, lines, machines, vectors, machine, burst);
}

/* Machines that all ring all: the time of CPUs that they used together, and their doorbells in `rung`. */
int64_t storm(int machines, int vectors, int burst, int64_t duration_ns, int64_t *rung)
{
    size_t size = sizeof(struct storm) + machines * sizeof(struct account);
    struct storm *storm = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int *lines = malloc(machines * vectors * sizeof *lines), gate[2], started = 0, opened = 0;
    pid_t *children = calloc(machines, sizeof *children);
    int64_t cpu_ns = 0, result = 0;
    struct timespec duration = {.tv_sec = duration_ns / 1000000000, .tv_nsec = duration_ns % 1000000000};
    if (storm == MAP_FAILED || lines == NULL || children == NULL || pipe2(gate, O_CLOEXEC))
        return -ENOMEM;
    for (; opened < machines * vectors; opened++)
        if ((lines[opened] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
            result = -errno;
            break;
        }
    for (; !result && started < machines; started++) {
        if ((children[started] = fork_tied()) == 0)
            run_storm_machine(storm, lines, machines, vectors, started, burst, gate);
        if (children[started] < 0) {
            result = -EAGAIN;
            break;
        }
    }
    if (result)
        storm->stop = 1;
    close(gate[1]);
    if (!result)
        nanosleep(&duration, NULL);
    storm->stop = 1;
    *rung = 0;
    while (started-- > 0) {
        struct account *account = &storm->accounts[started];
        if (reap(children[started]))
            result = -ECHILD;
        *rung += account->rung;
        cpu_ns += account->cpu_ns;
    }
    close(gate[0]);
    while (opened-- > 0)
        close(lines[opened]);
    munmap(storm, size);
    free(lines);
    free(children);
    return result ? result : cpu_ns;
}

/* Messages of the server */

union ancillary {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr aligned;
};

static int send_message(int sock, int64_t number, int descriptor)
{
    union ancillary ancillary = {0};
    struct iovec data = {.iov_base = &number, .iov_len = sizeof number};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = ancillary.bytes,
                             .msg_controllen = sizeof ancillary.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof descriptor);
    memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    return sendmsg(sock, &message, MSG_NOSIGNAL) == sizeof number ? 0 : -1;
}

static int receive_message(int sock, int64_t *number)
{
    union ancillary ancillary;
    struct iovec data = {.iov_base = number, .iov_len = sizeof *number};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = ancillary.bytes,
                             .msg_controllen = sizeof ancillary.bytes};
    struct cmsghdr *header;
    int descriptor;
    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != sizeof *number || message.msg_flags & MSG_CTRUNC)
        return -1;
    header = CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_type != SCM_RIGHTS)
        return -1;
    memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    return descriptor;
}

/* Messages with one descriptor each through a pair of sockets: `batch` are sent, then received, and again. */
int64_t pass_messages(int sender, int receiver, int descriptor, int batch, int batches)
{
    int received[BACKLOG_MAX];
    int64_t number, spent_ns = 0;
    if (batch > BACKLOG_MAX)
        return -EINVAL;
    while (batches-- > 0) {
        int64_t begin_ns = used_ns();
        for (int at = 0; at < batch; at++)
            if (send_message(sender, at, descriptor))
                return -errno;
        for (int at = 0; at < batch; at++)
            if ((received[at] = receive_message(receiver, &number)) < 0)
                return -errno;
        spent_ns += used_ns() - begin_ns;
        for (int at = 0; at < batch; at++)
            close(received[at]);
    }
    return spent_ns;
}

/* Bring-up */

static int say(int sock, int64_t number)
{
    return send(sock, &number, sizeof number, MSG_NOSIGNAL) == sizeof number ? 0 : -1;
}

/* What clients tell of themselves; `left` are those that have not read everything. */
struct client_group {
    int64_t left, cpu_ns;
};

/* One message; its descriptor is closed again. */
static int take_message(int sock)
{
    int64_t number;
    union ancillary ancillary;
    struct iovec data = {.iov_base = &number, .iov_len = sizeof number};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = ancillary.bytes,
                             .msg_controllen = sizeof ancillary.bytes};
    struct cmsghdr *header;
    int descriptor;
    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != sizeof number || message.msg_flags & MSG_CTRUNC)
        return -1;
    if ((header = CMSG_FIRSTHDR(&message)) != NULL) {
        memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
        close(descriptor);
    }
    return 0;
}

/* One client; it ends with `hold`. */
static void read_greeting(struct client_group *group, const struct sockaddr_un *address, int64_t messages, int report, int hold)
{
    int64_t begin_ns = used_ns();
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), failed;
    char nothing;
    failed = connect(sock, (const struct sockaddr *)address, sizeof *address) || write(report, "c", 1) != 1;
    for (int64_t at = 0; at < messages && !failed; at++)
        failed = take_message(sock);
    __atomic_add_fetch(&group->cpu_ns, used_ns() - begin_ns, __ATOMIC_SEQ_CST);
    if (failed || (messages && __atomic_sub_fetch(&group->left, 1, __ATOMIC_SEQ_CST) == 0))
        if (write(report, failed ? "f" : "d", 1) != 1)
            _exit(1);
    while (read(hold, &nothing, 1) > 0)
        ;
    _exit(failed);
}

/* `clients` processes, each a client of the server on `path`: the first `deaf` never read, the others until each has
 * had so many messages. A "c" is written to `report` for each that is connected, a "d" when all have read, an "f" if
 * one fails. All end with the pipe `hold`. The process that has them as children; what they used goes to `group`. */
int64_t start_clients(struct client_group *group, const char *path, int clients, int deaf, int64_t messages, int report,
                      const int *hold)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int result = 0;
    pid_t child;
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    *group = (struct client_group){.left = clients - deaf};
    if ((child = fork_tied()) != 0)
        return child < 0 ? -errno : child;
    close(hold[1]);
    for (int at = 0; at < clients; at++) {
        pid_t client = fork_tied();
        if (client == 0)
            read_greeting(group, &address, at < deaf ? 0 : messages, report, hold[0]);
        if (client < 0 && write(report, "f", 1))
            result = 1;
    }
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    _exit(result);
}

static int tell_vectors(int sock, int peer, const int *eventfds, int vectors)
{
    for (int vector = 0; vector < vectors; vector++)
        if (send_message(sock, peer, eventfds[peer * vectors + vector]))
            return -1;
    return 0;
}

/* A server as the first ones were: it accepts one client, greets it, tells the others, then accepts the next one.
 * Unlike them it waits for clients that do not read. Until `done` says that all have read everything. */
int64_t serve_one_by_one(int listener, int memory, int clients, int vectors, int done)
{
    int *socks = malloc(clients * sizeof *socks), *eventfds = malloc(clients * vectors * sizeof *eventfds);
    int64_t begin_ns = used_ns(), result = 0;
    int joined = 0, made = 0;
    char word;
    if (socks == NULL || eventfds == NULL)
        return -ENOMEM;
    while (joined < clients && !result) {
        int newcomer = accept4(listener, NULL, NULL, SOCK_CLOEXEC), failed = newcomer < 0;
        if (failed) {
            result = -errno;
            break;
        }
        socks[joined++] = newcomer;
        for (int vector = 0; vector < vectors && !failed; vector++, made++)
            failed = (eventfds[made] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0;
        failed = failed || say(newcomer, 0) || say(newcomer, joined - 1) || send_message(newcomer, -1, memory);
        for (int other = 0; other < joined - 1 && !failed; other++)
            failed = tell_vectors(socks[other], joined - 1, eventfds, vectors);
        for (int peer = 0; peer < joined && !failed; peer++)
            failed = tell_vectors(newcomer, peer, eventfds, vectors);
        if (failed)
            result = -errno;
    }
    if (!result && (read(done, &word, 1) != 1 || word != 'd'))
        result = -EPIPE;
    if (!result)
        result = used_ns() - begin_ns;
    while (joined-- > 0)
        close(socks[joined]);
    while (made-- > 0)
        close(eventfds[made]);
    free(socks);
    free(eventfds);
    return result;
}
