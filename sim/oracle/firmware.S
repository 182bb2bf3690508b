/*
 * The source of sim/oracle/firmware.py: a bare 64-bit guest that does a list of commands whenever it is interrupted.
 * A test assembles it and compares:  cc -c firmware.S -o firmware.o; objcopy -O binary -j .text firmware.o firmware.bin
 */
	.set BASE, 0xf0000		/* where the last 64 KiB of the firmware appear below 1 MiB */
	.set DIRECTORY, 0x1000		/* page tables: 512 GiB, 1 GiB and from TABLES on 2 MiB an entry */
	.set TABLES, 0x10000
	.set IDT, 0x4000
	.set COMMANDS, 0x300000
	.set COMMAND_BYTES, 40
	.set STACK, 0x9000
	.set WAKE, 0x40
	.set APIC, 0xfee00000
	.set DEBUG_PORT, 0xe9

	.text
	.code16
boot:	cli
	lgdtl	%cs:(gdt_pointer - boot)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x08, $(BASE + protected - boot)

	.code32
protected:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$(DIRECTORY + 0x1003), DIRECTORY
	movl	$(TABLES + 0x0003), DIRECTORY + 0x1000	/* the first 4 GiB */
	movl	$(TABLES + 0x1003), DIRECTORY + 0x1008
	movl	$(TABLES + 0x2003), DIRECTORY + 0x1010
	movl	$(TABLES + 0x3003), DIRECTORY + 0x1018
	movl	$(TABLES + 0x4003), DIRECTORY + 0x1120	/* and the one at 9_0000_0000: operations.py, WINDOWS */
	movl	$0x83, %eax
	xorl	%edx, %edx
	movl	$TABLES, %edi
1:	movl	%eax, (%edi)
	movl	%edx, 4(%edi)
	addl	$0x200000, %eax
	jnc	2f
	movl	$9, %edx
2:	addl	$8, %edi
	cmpl	$(TABLES + 0x5000), %edi
	jne	1b
	movl	$DIRECTORY, %eax
	movl	%eax, %cr3
	movl	$0x20, %eax			/* PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx		/* EFER: long mode */
	movl	$0x100, %eax
	xorl	%edx, %edx
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	ljmpl	$0x18, $(BASE + long - boot)

	.code64
long:	movl	$STACK, %esp
	movl	$(BASE + woken - boot), %eax
	movw	%ax, IDT + 16 * WAKE
	movl	$0x8e000018, IDT + 16 * WAKE + 2
	shrl	$16, %eax
	movl	%eax, IDT + 16 * WAKE + 6
	movl	$0, IDT + 16 * WAKE + 10
	lidt	(BASE + idt_pointer - boot)
	movl	$APIC, %ebp
	movl	$0x1ff, 0xf0(%rbp)		/* enabled */
	movb	$'\n', %al
	outb	%al, $DEBUG_PORT
	sti
1:	hlt
	jmp	1b

woken:	movl	$COMMANDS, %ebx
	jmp	3f
1:	movl	32(%rbx), %eax
	testl	%eax, %eax
	jz	2f
	movl	$0xcf8, %edx
	outl	%eax, %dx
2:	movq	8(%rbx), %rdi
	movl	%edi, %edx
	movq	16(%rbx), %rax
	call	*(%rbx)
	movq	%rax, 24(%rbx)
	addl	$COMMAND_BYTES, %ebx
3:	cmpq	$0, (%rbx)
	jne	1b
	movl	$0, 0xb0(%rbp)			/* end of interrupt */
	movb	$'\n', %al
	outb	%al, $DEBUG_PORT
	iretq

	.balign 8, 0
gdt:	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdt_pointer:
	.word	31
	.long	BASE + gdt - boot
idt_pointer:
	.word	16 * WAKE + 15
	.quad	IDT

	/* The accesses, 16 bytes of code each: rdi has the address, dx the port, rax the value. */
	.macro	access, instructions:vararg
	.balign 16, 0
	\instructions
	ret
	.endm
	.org	0x200
	access	movzbl	(%rdi), %eax
	access	movzwl	(%rdi), %eax
	access	movl	(%rdi), %eax
	access	movq	(%rdi), %rax
	access	movb	%al, (%rdi)
	access	movw	%ax, (%rdi)
	access	movl	%eax, (%rdi)
	access	movq	%rax, (%rdi)
	access	inb	%dx, %al
	access	inw	%dx, %ax
	access	inl	%dx, %eax
	access	outb	%al, %dx
	access	outw	%ax, %dx
	access	outl	%eax, %dx

	/* Copy 8 bytes each from rdi to where the command says; set as many to zero. */
	.balign 16, 0
	movl	%eax, %ecx
	movl	%edi, %esi
	movq	24(%rbx), %rdi
	rep movsq
	ret
	.balign 16, 0
	movl	%eax, %ecx
	xorl	%eax, %eax
	rep stosq
	ret
