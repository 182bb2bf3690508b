// SPDX-License-Identifier: GPL-2.0
/*
 * The init process of a Linux guest with a driver in the kernel: it answers each doorbell.
 *
 * It loads ivshmem_misc.ko, maps the shared memory from /dev/ivshmem0, waits by reading from that, and rings by writing
 * to it. A read returns how many interrupts there have been. Each one is answered by one doorbell for each number that a
 * peer has put into its slot of the shared memory (docs/guest.md).
 *
 * Lines on the console:
 *   ivsim: ready                   a topology waits for this line (`ready_when`)
 *   ivsim: rung=N interrupts=M     totals, whenever nothing has happened for IDLE_MS, or a line is typed
 *   ivsim: unplugged               the device was to be removed, and the kernel has let go of it
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEVICE "/dev/ivshmem0"
#define MEMORY "/sys/class/misc/ivshmem0/device/resource2" /* its size is that of BAR2 */
#define PEERS 64
#define SLOTS_OF_A_PEER 4
#define IDLE_MS 300

struct slot {
	uint32_t rung;     /* written by the peer: how many doorbells it has rung at the guest */
	uint32_t seen;     /* written by the guest: the number that it read last after an interrupt */
	uint32_t answered; /* written by the guest: how many doorbells it has rung at the peer */
	uint32_t unused[13];
};

static void fail(const char *what)
{
	printf("ivsim: failed: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	usleep(200000); /* the serial port still sends */
	reboot(RB_POWER_OFF);
}

static void load(const char *module)
{
	int file = open(module, O_RDONLY | O_CLOEXEC);

	if (file < 0 || syscall(SYS_finit_module, file, "", 0))
		fail(module);
	close(file);
}

/* Ring each peer once for each new number in its slot of vector 0; returns how often. */
static long answer(int device, volatile struct slot *slots)
{
	uint32_t doorbell;
	long rung = 0;

	for (uint32_t peer = 0; peer < PEERS; peer++) {
		volatile struct slot *slot = &slots[peer * SLOTS_OF_A_PEER];
		uint32_t number = slot->rung; /* later ones have doorbells of their own */

		while (slot->seen != number) {
			slot->seen++;
			slot->answered++;
			doorbell = peer << 16; /* vector 0; the driver orders it after the numbers */
			if (write(device, &doorbell, sizeof(doorbell)) != sizeof(doorbell))
				return rung; /* the device has gone */
			rung++;
		}
	}
	return rung;
}

static void serve(int device, volatile struct slot *slots)
{
	struct pollfd files[] = {{.fd = device, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
	long rung = 0, told = -1;
	uint64_t interrupts = 0;
	char line[64];

	for (;;) {
		int ready = poll(files, 2, IDLE_MS);
		int asked = ready > 0 && files[1].revents;

		if (ready > 0 && files[0].revents) {
			if (read(device, &interrupts, sizeof(interrupts)) == sizeof(interrupts)) {
				__sync_synchronize(); /* numbers are read after the interrupt that tells of them */
				rung += answer(device, slots);
			} else {
				files[0].fd = -1; /* the driver has left the device: it was unplugged */
				told = -1;
				printf("ivsim: unplugged\n");
			}
		}
		if (asked && read(STDIN_FILENO, line, sizeof(line)) <= 0)
			files[1].fd = -1; /* there is none to ask */
		if (asked || (!ready && rung + (long)interrupts != told)) {
			told = rung + (long)interrupts;
			printf("ivsim: rung=%ld interrupts=%llu\n", rung, (unsigned long long)interrupts);
		}
	}
}

int main(void)
{
	struct stat status;
	void *memory;
	int console, device;

	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		dup2(console, 0);
		dup2(console, 1);
		dup2(console, 2);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	load("/ivshmem_misc.ko");
	device = open(DEVICE, O_RDWR);
	if (device < 0)
		fail(DEVICE);
	if (stat(MEMORY, &status))
		fail(MEMORY);
	memory = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
	if (memory == MAP_FAILED)
		fail("mmap of " DEVICE);
	printf("ivsim: ready\n");
	serve(device, memory);
}
