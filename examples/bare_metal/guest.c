// SPDX-License-Identifier: GPL-2.0
/*
 * A guest without an operating system that takes part in a run of ivshmem-sim: it answers each doorbell.
 *
 * QEMU loads it as a multiboot kernel (-kernel), in 32-bit protected mode. It finds 1af4:1110 on bus 0, enables memory
 * decoding and bus mastering, and points the MSI-X vectors at words of its own memory: an MSI is a write by the device,
 * and a guest that polls needs no interrupt controller (with TCG; KVM gives an MSI to the processor). Each message of
 * vector 0 is answered by one doorbell for each number that a peer has put into its slot of the shared memory
 * (docs/guest.md).
 *
 * Lines on the console (the first serial port):
 *   ivsim: ready                   a topology waits for this line (`ready_when`)
 *   ivsim: rung=N interrupts=M     totals, after AWAITED answers, whenever a line is typed, and before it is unplugged
 *   ivsim: unplugged               the device was to be removed, and the guest has let go of it
 */
#define PCI_ADDRESS 0xcf8 /* PCI 3.0, 3.2.2.3.2 */
#define PCI_DATA 0xcfc
#define COM1 0x3f8
#define UNPLUG_REQUESTS 0xae04 /* of a PC (i440FX): QEMU, docs/specs/acpi_pci_hotplug */
#define EJECT 0xae08
#define LINE_STATUS 5
#define RECEIVED 1
#define SENT 0x20

#define IVSHMEM 0x11101af4
#define COMMAND 0x04
#define MEMORY_AND_MASTER 6
#define BAR0 0x10
#define BAR1 0x14
#define BAR2 0x18 /* 64 bits: this guest runs below 4 GiB, and QEMU's firmware puts a small BAR there */
#define MSIX_CONTROL 0x40 /* the capability of ivshmem-doorbell; its control register is the upper half */
#define MSIX_ENABLE (1u << 31)

#define IVPOSITION 2 /* indices of 32-bit registers of BAR0: docs/specs/ivshmem-spec in QEMU */
#define DOORBELL 3
#define PEERS 64
#define SLOTS_OF_A_PEER 4
#define VECTORS 2
#ifndef AWAITED
#define AWAITED 1000
#endif

typedef unsigned int u32;

struct slot {
	u32 rung;     /* written by the peer: how many doorbells it has rung at the guest */
	u32 seen;     /* written by the guest: the number that it has read */
	u32 answered; /* written by the guest: how many doorbells it has rung at the peer */
	u32 unused[13];
};

/* Multiboot 0.6.96, 3.1: QEMU loads the ELF file and jumps to its entry. */
__attribute__((section(".multiboot"), used)) static const u32 multiboot[] = {0x1badb002, 0, -0x1badb002u};

static volatile u32 messages[VECTORS]; /* where the device writes its MSI-X messages */
static char stack[4096] __attribute__((used, aligned(16)));

__asm__(".globl start\nstart:\n\tmovl $stack + 4096, %esp\n\tcall run\n");

static inline void out32(unsigned short port, u32 value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline u32 in32(unsigned short port)
{
	u32 value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void out8(unsigned short port, unsigned char value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline unsigned char in8(unsigned short port)
{
	unsigned char value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void print(const char *text)
{
	for (; *text; text++) {
		while (!(in8(COM1 + LINE_STATUS) & SENT))
			;
		out8(COM1, *text);
	}
}

static void print_number(u32 number)
{
	char digits[11], *at = digits + sizeof(digits) - 1;

	*at = 0;
	do
		*--at = '0' + number % 10;
	while (number /= 10);
	print(at);
}

static u32 config_read(int slot, int offset)
{
	out32(PCI_ADDRESS, 1u << 31 | slot << 11 | offset);
	return in32(PCI_DATA);
}

static void config_write(int slot, int offset, u32 value)
{
	out32(PCI_ADDRESS, 1u << 31 | slot << 11 | offset);
	out32(PCI_DATA, value);
}

static u32 rung, interrupts;

static void tell_totals(void)
{
	print("ivsim: rung=");
	print_number(rung);
	print(" interrupts=");
	print_number(interrupts);
	print("\n");
}

/* Ring each peer once for each new number in its slot of vector 0. */
static void answer(volatile u32 *registers, volatile struct slot *slots)
{
	for (u32 peer = 0; peer < PEERS; peer++) {
		volatile struct slot *slot = &slots[peer * SLOTS_OF_A_PEER];
		u32 number = slot->rung; /* later ones have doorbells of their own */

		while (slot->seen != number) {
			slot->seen++;
			slot->answered++;
			__sync_synchronize(); /* the numbers are there before the doorbell */
			registers[DOORBELL] = peer << 16;
			if (++rung == AWAITED)
				tell_totals();
		}
	}
}

__attribute__((noreturn, used)) void run(void)
{
	volatile u32 *registers, *table;
	volatile struct slot *slots;
	int slot;

	for (slot = 0; slot < 32 && config_read(slot, 0) != IVSHMEM; slot++)
		;
	if (slot == 32) {
		print("ivsim: failed: no device 1af4:1110 on bus 0\n");
		for (;;)
			__asm__ volatile("cli; hlt");
	}
	registers = (volatile u32 *)(config_read(slot, BAR0) & ~15u);
	table = (volatile u32 *)(config_read(slot, BAR1) & ~15u);
	slots = (volatile struct slot *)(config_read(slot, BAR2) & ~15u);
	config_write(slot, COMMAND, MEMORY_AND_MASTER);
	for (int vector = 0; vector < VECTORS; vector++) {
		table[4 * vector] = (u32)&messages[vector];
		table[4 * vector + 1] = 0;
		table[4 * vector + 2] = 1; /* what the device writes */
		table[4 * vector + 3] = 0; /* not masked */
	}
	config_write(slot, MSIX_CONTROL, config_read(slot, MSIX_CONTROL) | MSIX_ENABLE);
	print("ivsim: peer=");
	print_number(registers[IVPOSITION]);
	print("\nivsim: ready\n");
	for (;;) {
		for (int vector = 0; vector < VECTORS; vector++) {
			if (!messages[vector])
				continue;
			messages[vector] = 0;
			interrupts++;
			__sync_synchronize(); /* numbers are read after the message that tells of them */
			answer(registers, slots);
		}
		if (in32(UNPLUG_REQUESTS) & 1u << slot) {
			tell_totals();
			out32(EJECT, 1u << slot); /* from here on the device is gone */
			print("ivsim: unplugged\n");
			for (;;)
				__asm__ volatile("cli; hlt");
		}
		if (in8(COM1 + LINE_STATUS) & RECEIVED) {
			if (in8(COM1) == '\n')
				tell_totals();
		}
	}
}
