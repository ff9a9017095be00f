// Entry through PVH (32-bit, no paging) -> 64-bit mode -> CPL 3, where everything else runs.
//
// CPL 3 because a KVM that emulates kernel code in software runs user code natively. I/O privilege level 3 lets it use
// ports; all memory is mapped for it. Interrupts stay off: the guest polls.

// ELF note PHYS32_ENTRY (xen/include/public/elfnote.h): name size, entry size, type.
.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18
.asciz "Xen"
.long pvh_entry

.set KERNEL_CODE, 0x08
.set KERNEL_DATA, 0x10
// SYSEXIT takes its selectors from IA32_SYSENTER_CS: +32 for code, +40 for the stack.
.set USER_CODE, KERNEL_CODE + 32 + 3
.set USER_DATA, KERNEL_CODE + 40 + 3
.set TSS, 0x38
.set SECOND_TSS, 0x48
// For the way from real mode to 64-bit mode.
.set CODE_32, 0x18
// I/O privilege level 3, bit 1 always set, interrupts off.
.set USER_FLAGS, 0x3002

.section .boot, "ax"
.code32
.global pvh_entry
pvh_entry:
    cld
    mov $boot_stack_top, %esp
    // Identity map of 5 GiB in 2 MiB pages: present, writable, user.
    movl $(pdpt + 7), pml4
    mov $(pd + 7), %eax
    mov $pdpt, %edi
    mov $5, %ecx
1:  mov %eax, (%edi)
    add $4096, %eax
    add $8, %edi
    dec %ecx
    jnz 1b
    mov $0x87, %eax
    mov $pd, %edi
    mov $2560, %ecx
2:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    dec %ecx
    jnz 2b
    // The fifth lies above 4 GiB: the upper halves of its entries.
    mov $(pd + 4 * 4096 + 4), %edi
    mov $512, %ecx
7:  movl $1, (%edi)
    add $8, %edi
    dec %ecx
    jnz 7b
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x620, %eax            // PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0xC0000080, %ecx       // EFER
    mov $0x100, %eax            // LME
    xor %edx, %edx
    wrmsr
    mov $0x80000033, %eax       // PG, NE, ET, MP, PE
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $KERNEL_CODE, $long_mode

.code64
long_mode:
    mov $KERNEL_DATA, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov $boot_stack_top, %rsp
    // The task state holds the stack for traps.
    mov $tss, %eax
    mov %ax, gdt + TSS + 2
    shr $16, %eax
    mov %al, gdt + TSS + 4
    mov %ah, gdt + TSS + 7
    movq $trap_stack_top, tss + 4
    mov $TSS, %eax
    ltr %ax
    // Interrupt gates to the stubs, which are 16 bytes apart.
    mov $stubs, %eax
    mov $idt, %edi
    mov $32, %ecx
3:  mov %ax, (%rdi)
    movw $KERNEL_CODE, 2(%rdi)
    movw $0x8E00, 4(%rdi)
    mov %eax, %edx
    shr $16, %edx
    mov %dx, 6(%rdi)
    add $16, %eax
    add $16, %edi
    dec %ecx
    jnz 3b
    lidt idt_pointer
    mov $0x174, %ecx            // IA32_SYSENTER_CS
    mov $KERNEL_CODE, %eax
    xor %edx, %edx
    wrmsr
    mov $user_stack_top, %ecx
    mov $user_entry, %edx
// To rdx with the stack rcx.
enter_user:
    pushq $USER_FLAGS
    popfq
    // Emulators know this one and not IRETQ; AMD's CPUs raise #UD, and `trap` goes on with IRETQ.
at_sysexit:
    sysexitq

user_entry:
    xor %ebp, %ebp
    mov %ebx, %edi              // hvm_start_info
    call guest_main

// Where the second vCPU begins, in real mode: `second.rs` copies this to low memory.
.code16
.global second_start
second_start:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    lgdtl second_gdt_pointer - second_start
    mov $0x33, %eax             // NE, ET, MP, PE
    mov %eax, %cr0
    ljmpl $CODE_32, $second_protected
second_gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
.global second_end
second_end:

.code32
second_protected:
    mov $KERNEL_DATA, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x620, %eax
    mov %eax, %cr4
    mov $0xC0000080, %ecx
    mov $0x100, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80000033, %eax
    mov %eax, %cr0
    ljmp $KERNEL_CODE, $second_long

.code64
second_long:
    mov $second_boot_stack_top, %rsp
    mov $second_tss, %eax
    mov %ax, gdt + SECOND_TSS + 2
    shr $16, %eax
    mov %al, gdt + SECOND_TSS + 4
    mov %ah, gdt + SECOND_TSS + 7
    movq $second_trap_stack_top, second_tss + 4
    mov $SECOND_TSS, %eax
    ltr %ax
    lidt idt_pointer
    mov $0x174, %ecx
    mov $KERNEL_CODE, %eax
    xor %edx, %edx
    wrmsr
    mov $second_user_stack_top, %ecx
    mov $second_user_entry, %edx
    jmp enter_user

second_user_entry:
    xor %ebp, %ebp
    call second_main

.align 16
stubs:
.set vector, 0
.rept 32
    .align 16
    // These push an error code themselves: 8, 10 to 14, 17.
    .if ((1 << vector) & 0x27D00) == 0
    pushq $0
    .endif
    pushq $vector
    jmp trap
    .set vector, vector + 1
.endr

// On the stack: vector, error code, rip, cs, rflags, rsp, ss.
trap:
    cmpq $13, (%rsp)
    jne 5f
    // Not every KVM honours the I/O privilege level: do it for CPL 3. Clobbers rcx and rdx, as SYSEXIT must.
    mov 16(%rsp), %rcx
    cmpb $0xEC, (%rcx)          // in al, dx
    je 3f
    cmpb $0xEE, (%rcx)          // out dx, al
    jne 5f
    out %al, %dx
    jmp 4f
3:  in %dx, %al
4:  mov 16(%rsp), %rdx
    inc %rdx
    mov 40(%rsp), %rcx
    sysexitq
5:  cmpq $6, (%rsp)
    jne 6f
    cmpq $at_sysexit, 16(%rsp)
    jne 6f
    pushq $USER_DATA
    pushq %rcx
    pushq $USER_FLAGS
    pushq $USER_CODE
    pushq %rdx
    iretq
6:  pop %rdi                    // vector
    pop %rsi                    // error code
    mov (%rsp), %rdx            // rip
    mov %cr2, %rcx
    and $-16, %rsp
    call guest_trap

.section .data
.align 16
gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF    // KERNEL_CODE
    .quad 0x00CF93000000FFFF    // KERNEL_DATA
    .quad 0x00CF9B000000FFFF    // CODE_32
    .quad 0
    .quad 0x00AFFB000000FFFF    // USER_CODE
    .quad 0x00CFF3000000FFFF    // USER_DATA
    .quad 0x0000890000000067    // TSS, its base filled in above
    .quad 0
    .quad 0x0000890000000067    // SECOND_TSS
    .quad 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
idt_pointer:
    .word 32 * 16 - 1
    .quad idt

.section .bss
.align 4096
.global pml4
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 5 * 4096
idt: .skip 32 * 16
tss: .skip 104
second_tss: .skip 104
.align 4096
.skip 4096
boot_stack_top:
.skip 4 * 4096
trap_stack_top:
.skip 16 * 4096
user_stack_top:
.skip 4096
second_boot_stack_top:
.skip 4 * 4096
second_trap_stack_top:
.skip 16 * 4096
second_user_stack_top:
