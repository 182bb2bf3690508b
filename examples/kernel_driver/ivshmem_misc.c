// SPDX-License-Identifier: GPL-2.0
/*
 * A driver for ivshmem-doorbell in the pattern of the kernel's own PCI drivers: a pci_driver that maps the registers,
 * takes an MSI-X interrupt for each vector, and offers the device to programs as /dev/ivshmemN.
 *
 *   read    waits for an interrupt, and returns how many there have been, on any vector: 64 bits
 *   write   rings: each 32-bit word is `peer << 16 | vector`, what the doorbell register takes
 *   mmap    the shared memory
 *   poll    readable when an interrupt has come since the last read
 *
 * A program may hold the file while the device goes (device_del): it gets ENODEV from then on, what it has mapped reads
 * as ones, and the last one that closes the file frees what is left.
 */
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define IVPOSITION 8 /* registers of BAR0: docs/specs/ivshmem-spec in QEMU */
#define DOORBELL 12
#define VECTORS_MAX 8

struct ivshmem {
	struct kref references;   /* the device has one, and each open file */
	struct mutex lock;        /* held where the device must not go meanwhile */
	struct pci_dev *device;   /* NULL once it has gone */
	void __iomem *registers;
	struct miscdevice misc;
	wait_queue_head_t arrivals;
	atomic64_t interrupts;
	int vectors;
	char name[16];
};

static atomic_t count = ATOMIC_INIT(-1);

static void ivshmem_free(struct kref *references)
{
	kfree(container_of(references, struct ivshmem, references));
}

static irqreturn_t ivshmem_interrupt(int irq, void *data)
{
	struct ivshmem *ivshmem = data;

	atomic64_inc(&ivshmem->interrupts);
	wake_up_interruptible(&ivshmem->arrivals);
	return IRQ_HANDLED;
}

/* What a file has seen is in `f_pos`: it is the number that its last read returned. */
static bool ivshmem_has_news(struct ivshmem *ivshmem, loff_t seen)
{
	return atomic64_read(&ivshmem->interrupts) != seen || !READ_ONCE(ivshmem->device);
}

static int ivshmem_open(struct inode *inode, struct file *file)
{
	struct ivshmem *ivshmem = container_of(file->private_data, struct ivshmem, misc);

	kref_get(&ivshmem->references); /* misc_deregister() waits for this function */
	file->private_data = ivshmem;
	return 0;
}

static int ivshmem_release(struct inode *inode, struct file *file)
{
	struct ivshmem *ivshmem = file->private_data;

	kref_put(&ivshmem->references, ivshmem_free);
	return 0;
}

static ssize_t ivshmem_read(struct file *file, char __user *to, size_t size, loff_t *seen)
{
	struct ivshmem *ivshmem = file->private_data;
	u64 interrupts;

	if (size < sizeof(interrupts))
		return -EINVAL;
	if (!ivshmem_has_news(ivshmem, *seen) && file->f_flags & O_NONBLOCK)
		return -EAGAIN;
	if (wait_event_interruptible(ivshmem->arrivals, ivshmem_has_news(ivshmem, *seen)))
		return -ERESTARTSYS;
	interrupts = atomic64_read(&ivshmem->interrupts);
	if (interrupts == *seen)
		return -ENODEV;
	if (copy_to_user(to, &interrupts, sizeof(interrupts)))
		return -EFAULT;
	*seen = interrupts;
	return sizeof(interrupts);
}

static ssize_t ivshmem_write(struct file *file, const char __user *from, size_t size, loff_t *unused)
{
	struct ivshmem *ivshmem = file->private_data;
	ssize_t done = 0;
	u32 doorbell;

	if (size % sizeof(doorbell))
		return -EINVAL;
	mutex_lock(&ivshmem->lock);
	for (; done < size; done += sizeof(doorbell)) {
		if (!ivshmem->device) {
			done = done ?: -ENODEV;
			break;
		}
		if (copy_from_user(&doorbell, from + done, sizeof(doorbell))) {
			done = done ?: -EFAULT;
			break;
		}
		wmb(); /* what was written to the memory is there before the doorbell */
		iowrite32(doorbell, ivshmem->registers + DOORBELL);
	}
	mutex_unlock(&ivshmem->lock);
	return done;
}

static int ivshmem_mmap(struct file *file, struct vm_area_struct *area)
{
	struct ivshmem *ivshmem = file->private_data;
	int error = -ENODEV;

	mutex_lock(&ivshmem->lock);
	if (ivshmem->device)
		error = vm_iomap_memory(area, pci_resource_start(ivshmem->device, 2), pci_resource_len(ivshmem->device, 2));
	mutex_unlock(&ivshmem->lock);
	return error;
}

static __poll_t ivshmem_poll(struct file *file, poll_table *table)
{
	struct ivshmem *ivshmem = file->private_data;
	__poll_t ready = 0;

	poll_wait(file, &ivshmem->arrivals, table);
	if (ivshmem_has_news(ivshmem, file->f_pos))
		ready |= EPOLLIN | EPOLLRDNORM;
	if (!READ_ONCE(ivshmem->device))
		ready |= EPOLLHUP;
	return ready;
}

static const struct file_operations ivshmem_operations = {
	.owner = THIS_MODULE,
	.open = ivshmem_open,
	.release = ivshmem_release,
	.read = ivshmem_read,
	.write = ivshmem_write,
	.mmap = ivshmem_mmap,
	.poll = ivshmem_poll,
};

static int ivshmem_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	struct ivshmem *ivshmem;
	int vector = 0, error;

	error = pcim_enable_device(device); /* from here on, the kernel undoes all when the driver leaves the device */
	if (error)
		return error;
	error = pcim_iomap_regions(device, BIT(0), "ivshmem");
	if (error)
		return error;
	ivshmem = kzalloc(sizeof(*ivshmem), GFP_KERNEL);
	if (!ivshmem)
		return -ENOMEM;
	kref_init(&ivshmem->references);
	mutex_init(&ivshmem->lock);
	init_waitqueue_head(&ivshmem->arrivals);
	ivshmem->device = device;
	ivshmem->registers = pcim_iomap_table(device)[0];
	pci_set_drvdata(device, ivshmem);
	pci_set_master(device); /* an MSI is a write by the device */
	error = pci_alloc_irq_vectors(device, 1, VECTORS_MAX, PCI_IRQ_MSIX);
	if (error < 0)
		goto free;
	ivshmem->vectors = error;
	for (; vector < ivshmem->vectors; vector++) {
		error = request_irq(pci_irq_vector(device, vector), ivshmem_interrupt, 0, "ivshmem", ivshmem);
		if (error)
			goto free_interrupts;
	}
	snprintf(ivshmem->name, sizeof(ivshmem->name), "ivshmem%d", atomic_inc_return(&count));
	ivshmem->misc.minor = MISC_DYNAMIC_MINOR;
	ivshmem->misc.name = ivshmem->name;
	ivshmem->misc.fops = &ivshmem_operations;
	ivshmem->misc.parent = &device->dev;
	error = misc_register(&ivshmem->misc);
	if (error)
		goto free_interrupts;
	dev_info(&device->dev, "%s: peer %u, %d vectors\n", ivshmem->name, ioread32(ivshmem->registers + IVPOSITION),
		 ivshmem->vectors);
	return 0;

free_interrupts:
	while (vector--)
		free_irq(pci_irq_vector(device, vector), ivshmem);
	pci_free_irq_vectors(device);
free:
	kref_put(&ivshmem->references, ivshmem_free);
	return error;
}

static void ivshmem_remove(struct pci_dev *device)
{
	struct ivshmem *ivshmem = pci_get_drvdata(device);
	int vector;

	misc_deregister(&ivshmem->misc);
	mutex_lock(&ivshmem->lock);
	WRITE_ONCE(ivshmem->device, NULL);
	mutex_unlock(&ivshmem->lock);
	for (vector = 0; vector < ivshmem->vectors; vector++)
		free_irq(pci_irq_vector(device, vector), ivshmem);
	pci_free_irq_vectors(device);
	wake_up_interruptible(&ivshmem->arrivals);
	kref_put(&ivshmem->references, ivshmem_free);
}

static const struct pci_device_id ivshmem_ids[] = {{PCI_DEVICE(0x1af4, 0x1110)}, {}};
MODULE_DEVICE_TABLE(pci, ivshmem_ids);

static struct pci_driver ivshmem_driver = {
	.name = "ivshmem_misc",
	.id_table = ivshmem_ids,
	.probe = ivshmem_probe,
	.remove = ivshmem_remove,
};
module_pci_driver(ivshmem_driver);

MODULE_DESCRIPTION("ivshmem-doorbell as a character device");
MODULE_LICENSE("GPL");
