// SPDX-License-Identifier: GPL-2.0
/*
 * The init process of a small Linux guest that takes part in a run of ivshmem-sim.
 *
 * It binds the first ivshmem-doorbell device (1af4:1110) to vfio-pci, maps its registers (BAR0) and the shared
 * memory (BAR2), and takes an interrupt from each MSI-X vector. Vector 0 is answered: one doorbell for each that a
 * peer has numbered. Vector 1 is a storm: the guest notes the numbers, and from the first one on it rings
 * `ivsim.storm` doorbells back, in turn at all peers that storm.
 *
 * Numbers are kept in the shared memory, in one slot for each peer and vector (struct slot, docs/guest.md). A peer
 * raises `rung` before it rings. The guest stores in `seen` what it has read after an interrupt, so `seen == rung`
 * at the end proves that no doorbell was missed, however many interrupts were coalesced.
 *
 * Lines on the console:
 *   ivsim: ready            the device works; a topology waits for this line (`ready_when`)
 *   ivsim: rung=N ...       totals, whenever nothing has happened for IDLE_MS or a line is typed; the last one counts
 *   ivsim: unplugged        the device was to be removed, and the guest has let go of it
 *   ivsim: failed: ...      the guest cannot continue
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PCI "/sys/bus/pci/devices"
#define IVPOSITION 2 /* index of a 32-bit register of BAR0: docs/specs/ivshmem-spec in QEMU */
#define DOORBELL 3
#define COMMAND 4 /* offset in the configuration space */
#define COMMAND_MEMORY_AND_MASTER 6
#define PEERS 256
#define VECTORS 4
#define ANSWERED_VECTOR 0
#define STORM_VECTOR 1
#define STORM_CHUNK 64 /* doorbells between two looks at the interrupts */
#define IDLE_MS 300

struct slot {
	uint32_t rung;     /* written by the peer: how many doorbells it has rung at the guest */
	uint32_t seen;     /* written by the guest: the number that it read last after an interrupt */
	uint32_t answered; /* written by the guest: how many doorbells it has rung at the peer */
	uint32_t unused;
	uint64_t taken_ns;    /* written by the guest, by its clock: when it took an interrupt that it answers */
	uint64_t answered_ns; /* and when it rang the answer */
	uint64_t spare[4];
};

struct device {
	volatile uint32_t *registers;
	volatile struct slot (*slots)[VECTORS];
	size_t registers_size, memory_size; /* that are mapped */
	int file;
	int vectors;
	struct pollfd interrupts[VECTORS + 2]; /* the last ones in use: vfio wants the device back; the console */
};

static char command_line[4096];

static void power_off(void)
{
	fflush(stdout);
	sync();
	usleep(200000); /* the serial port still sends */
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	printf("ivsim: failed: ");
	vprintf(format, arguments);
	printf(": %s\n", strerror(error));
	va_end(arguments);
	power_off();
}

static void read_line(const char *path, char *text, int size)
{
	int file = open(path, O_RDONLY);
	int length = file < 0 ? 0 : read(file, text, size - 1);

	if (file >= 0)
		close(file);
	text[length < 0 ? 0 : length] = 0;
	text[strcspn(text, "\n")] = 0;
}

static void write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);

	if (file < 0 || write(file, text, strlen(text)) < 0)
		fail("%s", path);
	close(file);
}

/* The number that the kernel's command line gives as `key=NUMBER`. */
static long option(const char *key, long otherwise)
{
	char *found = strstr(command_line, key);

	return found ? strtol(found + strlen(key), NULL, 0) : otherwise;
}

static void load_modules(void)
{
	char name[64];
	FILE *list = fopen("/modules", "r"); /* in the order in which they need each other */

	while (list && fscanf(list, "%63s", name) == 1) {
		int file = open(name, O_RDONLY | O_CLOEXEC);

		if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
			fail("module %s", name);
		close(file);
	}
	if (list)
		fclose(list);
}

static void find_device(char *address, int size)
{
	char path[512], vendor[16], device[16];
	struct dirent *entry;
	DIR *directory = opendir(PCI);

	while (directory && (entry = readdir(directory))) {
		snprintf(path, sizeof(path), PCI "/%s/vendor", entry->d_name);
		read_line(path, vendor, sizeof(vendor));
		snprintf(path, sizeof(path), PCI "/%s/device", entry->d_name);
		read_line(path, device, sizeof(device));
		if (!strcmp(vendor, "0x1af4") && !strcmp(device, "0x1110")) {
			snprintf(address, size, "%s", entry->d_name);
			closedir(directory);
			return;
		}
	}
	errno = ENODEV;
	fail("no device 1af4:1110");
}

static int open_vfio(const char *address)
{
	char path[512], group[256];
	int container, file, device;
	ssize_t length;

	/* An emulated IOMMU does not remap interrupts unless QEMU was told so; vfio asks for consent then. */
	write_text("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "1");
	snprintf(path, sizeof(path), PCI "/%s/driver_override", address);
	write_text(path, "vfio-pci");
	write_text("/sys/bus/pci/drivers_probe", address);
	snprintf(path, sizeof(path), PCI "/%s/iommu_group", address);
	length = readlink(path, group, sizeof(group) - 1);
	if (length < 0)
		fail("no IOMMU in this machine (-device intel-iommu and intel_iommu=on)");
	group[length] = 0;
	snprintf(path, sizeof(path), "/dev/vfio%s", strrchr(group, '/'));
	container = open("/dev/vfio/vfio", O_RDWR);
	file = open(path, O_RDWR);
	if (container < 0 || file < 0)
		fail("%s", path);
	if (ioctl(file, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU))
		fail("the group's container");
	device = ioctl(file, VFIO_GROUP_GET_DEVICE_FD, address);
	if (device < 0)
		fail("the group's device");
	return device;
}

static void *map_region(int device, int index, size_t *size)
{
	struct vfio_region_info region = {.argsz = sizeof(region), .index = index};
	size_t length;
	void *mapped;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region))
		fail("BAR%d", index);
	length = region.size < 4096 ? 4096 : region.size; /* vfio reserves the rest of the page of a small BAR */
	mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);
	if (mapped == MAP_FAILED)
		fail("mmap of BAR%d", index);
	*size = length;
	return mapped;
}

/* vfio clears bus mastering, and an MSI is a write by the device: without this, no interrupt arrives. */
static void enable_bus_master(int device)
{
	struct vfio_region_info space = {.argsz = sizeof(space), .index = VFIO_PCI_CONFIG_REGION_INDEX};
	uint16_t command;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &space) || pread(device, &command, 2, space.offset + COMMAND) != 2)
		fail("the command register");
	command |= COMMAND_MEMORY_AND_MASTER;
	if (pwrite(device, &command, 2, space.offset + COMMAND) != 2)
		fail("the command register");
}

/* Let vfio signal eventfds, which are made here, for the first `count` interrupts of an index. */
static void signal_eventfds(int device, int index, struct pollfd *interrupts, int count)
{
	char bytes[sizeof(struct vfio_irq_set) + VECTORS * sizeof(int)];
	struct vfio_irq_set *set = (struct vfio_irq_set *)bytes;
	int number;

	set->argsz = sizeof(*set) + count * sizeof(int);
	set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	set->index = index;
	set->start = 0;
	set->count = count;
	for (number = 0; number < count; number++) {
		interrupts[number] = (struct pollfd){.fd = eventfd(0, EFD_NONBLOCK), .events = POLLIN};
		memcpy(set->data + number * sizeof(int), &interrupts[number].fd, sizeof(int));
	}
	if (ioctl(device, VFIO_DEVICE_SET_IRQS, set))
		fail("interrupts of index %d", index);
}

static void enable_interrupts(struct device *it)
{
	struct vfio_irq_info table = {.argsz = sizeof(table), .index = VFIO_PCI_MSIX_IRQ_INDEX};

	if (ioctl(it->file, VFIO_DEVICE_GET_IRQ_INFO, &table))
		fail("MSI-X");
	it->vectors = table.count < VECTORS ? table.count : VECTORS;
	signal_eventfds(it->file, VFIO_PCI_MSIX_IRQ_INDEX, it->interrupts, it->vectors);
	signal_eventfds(it->file, VFIO_PCI_REQ_IRQ_INDEX, it->interrupts + it->vectors, 1);
}

/* Give the device back: vfio waits until nothing of it is open or mapped. */
static void close_device(struct device *it)
{
	munmap((void *)it->registers, it->registers_size);
	munmap((void *)it->slots, it->memory_size);
	close(it->file);
}

static void open_device(struct device *it)
{
	char address[256];

	find_device(address, sizeof(address));
	load_modules();
	it->file = open_vfio(address);
	it->registers = map_region(it->file, VFIO_PCI_BAR0_REGION_INDEX, &it->registers_size);
	it->slots = map_region(it->file, VFIO_PCI_BAR2_REGION_INDEX, &it->memory_size);
	if (it->memory_size < sizeof(struct slot) * VECTORS * PEERS) {
		errno = ENOSPC;
		fail("%zu bytes of shared memory", it->memory_size);
	}
	enable_bus_master(it->file);
	enable_interrupts(it);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * UINT64_C(1000000000) + now.tv_nsec;
}

static void ring(struct device *it, int peer, int vector)
{
	it->slots[peer][vector].answered++;
	__sync_synchronize(); /* the number is there before the doorbell */
	it->registers[DOORBELL] = (uint32_t)peer << 16 | vector;
}

/* Note the numbers of all peers on one vector; with `answer`, ring each peer once for each new number. */
static long look(struct device *it, int vector, int answer)
{
	uint64_t taken_ns = answer ? now_ns() : 0;
	long rung = 0;
	int peer;

	for (peer = 0; peer < PEERS; peer++) {
		volatile struct slot *slot = &it->slots[peer][vector];
		uint32_t number = slot->rung;

		for (; slot->seen != number; slot->seen += answer ? 1 : number - slot->seen) {
			if (answer) {
				slot->taken_ns = taken_ns;
				slot->answered_ns = now_ns();
				ring(it, peer, vector);
				rung++;
			}
		}
	}
	return rung;
}

/* Ring up to `count` doorbells, in turn at the peers that storm. */
static long storm(struct device *it, long count)
{
	static int peer;
	long rung = 0;
	int idle = 0;

	while (rung < count && idle++ < PEERS) {
		peer = (peer + 1) % PEERS;
		if (it->slots[peer][STORM_VECTOR].rung) {
			ring(it, peer, STORM_VECTOR);
			rung++;
			idle = 0;
		}
	}
	return rung;
}

static long seen(struct device *it)
{
	long sum = 0;
	int peer, vector;

	for (peer = 0; peer < PEERS; peer++)
		for (vector = 0; vector < it->vectors; vector++)
			sum += it->slots[peer][vector].seen;
	return sum;
}

static long missed(struct device *it)
{
	long sum = 0;
	int peer, vector;

	for (peer = 0; peer < PEERS; peer++)
		for (vector = 0; vector < it->vectors; vector++)
			sum += it->slots[peer][vector].rung - it->slots[peer][vector].seen;
	return sum;
}

static void tell(struct device *it, long rung, long interrupts)
{
	printf("ivsim: rung=%ld interrupts=%ld seen=%ld missed=%ld\n", rung, interrupts, seen(it), missed(it));
}

static void serve(struct device *it, long storm_left)
{
	struct pollfd *removal = &it->interrupts[it->vectors], *console = removal + 1;
	long rung = 0, interrupts = 0, told = -1;
	int storming = 0, asked, idle, vector;
	char line[64];

	*console = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
	for (;;) {
		int ready = poll(it->interrupts, it->vectors + 2, storming && storm_left ? 0 : IDLE_MS);

		for (vector = 0; ready > 0 && vector < it->vectors; vector++) {
			uint64_t count;

			if (read(it->interrupts[vector].fd, &count, sizeof(count)) != sizeof(count))
				continue;
			interrupts += count;
			__sync_synchronize(); /* numbers are read after the interrupt that tells of them */
			rung += look(it, vector, vector == ANSWERED_VECTOR);
			storming |= vector == STORM_VECTOR;
		}
		if (ready > 0 && removal->revents) {
			tell(it, rung, interrupts);
			close_device(it);
			printf("ivsim: unplugged\n");
			for (;;)
				pause();
		}
		if (storming && storm_left) {
			long now = storm(it, storm_left < STORM_CHUNK ? storm_left : STORM_CHUNK);

			storm_left -= now;
			rung += now;
		}
		asked = ready > 0 && console->revents;
		if (asked && read(STDIN_FILENO, line, sizeof(line)) <= 0)
			console->fd = -1; /* there is none to ask */
		idle = !ready && !(storming && storm_left);
		if (asked || (idle && rung + interrupts != told)) {
			told = rung + interrupts;
			tell(it, rung, interrupts);
		}
	}
}

int main(void)
{
	static struct device device;
	int console;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		dup2(console, 0);
		dup2(console, 1);
		dup2(console, 2);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	read_line("/proc/cmdline", command_line, sizeof(command_line));
	open_device(&device);
	printf("ivsim: peer=%u vectors=%d memory=%zu\n", device.registers[IVPOSITION], device.vectors, device.memory_size);
	printf("ivsim: ready\n");
	serve(&device, option("ivsim.storm=", 0));
}
