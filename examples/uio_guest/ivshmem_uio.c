// SPDX-License-Identifier: GPL-2.0
/*
 * A driver for ivshmem-doorbell in the pattern of drivers/uio: BAR0, the registers, and BAR2, the shared memory, can be
 * mapped from /dev/uioN, and a read returns how many MSI-X interrupts there have been, on any vector.
 *
 * uio_pci_generic cannot do this: the device has MSI-X alone, and that driver knows INTx alone.
 */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/uio_driver.h>

#define VECTORS_MAX 8

static irqreturn_t ivshmem_interrupt(int irq, void *data)
{
	uio_event_notify(data);
	return IRQ_HANDLED;
}

static void ivshmem_map(struct uio_mem *map, const char *name, struct pci_dev *device, int bar)
{
	map->name = name;
	map->addr = pci_resource_start(device, bar);
	map->size = round_up(pci_resource_len(device, bar), PAGE_SIZE);
	map->memtype = UIO_MEM_PHYS;
}

static int ivshmem_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	struct uio_info *info;
	int vectors, vector, error;

	info = devm_kzalloc(&device->dev, sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	error = pcim_enable_device(device); /* from here on, the kernel undoes all when the driver leaves the device */
	if (error)
		return error;
	pci_set_master(device); /* an MSI is a write by the device */
	info->name = "ivshmem";
	info->version = "1";
	info->irq = UIO_IRQ_CUSTOM;
	ivshmem_map(&info->mem[0], "registers", device, 0);
	ivshmem_map(&info->mem[1], "shared memory", device, 2);
	error = devm_uio_register_device(&device->dev, info);
	if (error)
		return error;
	vectors = pci_alloc_irq_vectors(device, 1, VECTORS_MAX, PCI_IRQ_MSIX);
	if (vectors < 0)
		return vectors;
	for (vector = 0; vector < vectors; vector++) {
		error = devm_request_irq(&device->dev, pci_irq_vector(device, vector), ivshmem_interrupt, 0, "ivshmem",
					 info);
		if (error)
			return error;
	}
	dev_info(&device->dev, "%d vectors\n", vectors);
	return 0;
}

static const struct pci_device_id ivshmem_ids[] = {{PCI_DEVICE(0x1af4, 0x1110)}, {}};
MODULE_DEVICE_TABLE(pci, ivshmem_ids);

static struct pci_driver ivshmem_driver = {
	.name = "ivshmem_uio",
	.id_table = ivshmem_ids,
	.probe = ivshmem_probe,
};
module_pci_driver(ivshmem_driver);

MODULE_DESCRIPTION("ivshmem-doorbell for userspace I/O");
MODULE_LICENSE("GPL");
