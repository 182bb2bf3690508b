// SPDX-License-Identifier: GPL-2.0
/*
 * The init process of a Linux guest that uses ivshmem by UIO: it answers each doorbell.
 *
 * It loads uio.ko and ivshmem_uio.ko, maps the registers and the shared memory from /dev/uio0, and waits by reading from
 * that. A read returns how many interrupts there have been. Each one is answered by one doorbell for each number that a
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
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096 /* map N of a UIO device is at N pages (Linux, Documentation/driver-api/uio-howto.rst) */
#define MEMORY_SIZE "/sys/class/uio/uio0/maps/map1/size"
#define IVPOSITION 2 /* indices of 32-bit registers of BAR0: docs/specs/ivshmem-spec in QEMU */
#define DOORBELL 3
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

static void *map(int device, int number, size_t size)
{
	void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device, number * PAGE);

	if (mapped == MAP_FAILED)
		fail("mmap of /dev/uio0");
	return mapped;
}

static size_t memory_size(void)
{
	char text[32] = "";
	int file = open(MEMORY_SIZE, O_RDONLY);

	if (file < 0 || read(file, text, sizeof(text) - 1) < 1)
		fail(MEMORY_SIZE);
	close(file);
	return strtoul(text, NULL, 0);
}

/* Ring each peer once for each new number in its slot of vector 0; returns how often. */
static long answer(volatile uint32_t *registers, volatile struct slot *slots)
{
	long rung = 0;

	for (uint32_t peer = 0; peer < PEERS; peer++) {
		volatile struct slot *slot = &slots[peer * SLOTS_OF_A_PEER];
		uint32_t number = slot->rung; /* later ones have doorbells of their own */

		while (slot->seen != number) {
			slot->seen++;
			slot->answered++;
			__sync_synchronize(); /* the numbers are there before the doorbell */
			registers[DOORBELL] = peer << 16;
			rung++;
		}
	}
	return rung;
}

static void serve(int device, volatile uint32_t *registers, volatile struct slot *slots)
{
	struct pollfd files[] = {{.fd = device, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
	long rung = 0, told = -1;
	uint32_t interrupts = 0;
	char line[64];

	for (;;) {
		int ready = poll(files, 2, IDLE_MS);
		int asked = ready > 0 && files[1].revents;

		if (ready > 0 && files[0].revents) {
			if (read(device, &interrupts, sizeof(interrupts)) == sizeof(interrupts)) {
				__sync_synchronize(); /* numbers are read after the interrupt that tells of them */
				rung += answer(registers, slots);
			} else {
				files[0].fd = -1; /* the driver has left the device: it was unplugged */
				told = -1;
				printf("ivsim: unplugged\n");
			}
		}
		if (asked && read(STDIN_FILENO, line, sizeof(line)) <= 0)
			files[1].fd = -1; /* there is none to ask */
		if (asked || (!ready && rung + interrupts != told)) {
			told = rung + interrupts;
			printf("ivsim: rung=%ld interrupts=%u\n", rung, interrupts);
		}
	}
}

int main(void)
{
	volatile uint32_t *registers;
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
	load("/uio.ko");
	load("/ivshmem_uio.ko");
	device = open("/dev/uio0", O_RDWR);
	if (device < 0)
		fail("/dev/uio0");
	registers = map(device, 0, PAGE);
	printf("ivsim: peer=%u\n", registers[IVPOSITION]);
	printf("ivsim: ready\n");
	serve(device, registers, map(device, 1, memory_size()));
}
