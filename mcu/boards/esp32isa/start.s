# Start, exceptions and the simulator's system calls of QEMU's core de233_fpu, in the windowed ABI.
# The core has no MULUH and MULSH, which the ESP32 has: they end in the vector of illegal instructions, and are done there.

    .section .reset, "ax"       # where the core starts, whatever the program's entry is
    .global _reset
_reset:
    j       _start

# Window overflow and underflow, of 4, 8 and 12 registers, as Xtensa's manual has them.
    .section .vectors, "ax"
    .global _vectors
_vectors:
    s32e    a0, a5, -16
    s32e    a1, a5, -12
    s32e    a2, a5, -8
    s32e    a3, a5, -4
    rfwo
    .org    0x40
    l32e    a0, a5, -16
    l32e    a1, a5, -12
    l32e    a2, a5, -8
    l32e    a3, a5, -4
    rfwu
    .org    0x80
    s32e    a0, a9, -16
    l32e    a0, a1, -12
    s32e    a1, a9, -12
    s32e    a2, a9, -8
    s32e    a3, a9, -4
    s32e    a4, a0, -32
    s32e    a5, a0, -28
    s32e    a6, a0, -24
    s32e    a7, a0, -20
    rfwo
    .org    0xc0
    l32e    a0, a9, -16
    l32e    a1, a9, -12
    l32e    a2, a9, -8
    l32e    a7, a1, -12
    l32e    a3, a9, -4
    l32e    a4, a7, -32
    l32e    a5, a7, -28
    l32e    a6, a7, -24
    l32e    a7, a7, -20
    rfwu
    .org    0x100
    s32e    a0, a13, -16
    l32e    a0, a1, -12
    s32e    a1, a13, -12
    s32e    a2, a13, -8
    s32e    a3, a13, -4
    s32e    a4, a0, -48
    s32e    a5, a0, -44
    s32e    a6, a0, -40
    s32e    a7, a0, -36
    s32e    a8, a0, -32
    s32e    a9, a0, -28
    s32e    a10, a0, -24
    s32e    a11, a0, -20
    rfwo
    .org    0x140
    l32e    a0, a13, -16
    l32e    a1, a13, -12
    l32e    a2, a13, -8
    l32e    a11, a1, -12
    l32e    a3, a13, -4
    l32e    a4, a11, -48
    l32e    a5, a11, -44
    l32e    a6, a11, -40
    l32e    a7, a11, -36
    l32e    a8, a11, -32
    l32e    a9, a11, -28
    l32e    a10, a11, -24
    l32e    a11, a11, -20
    rfwu
    .org    0x300               # any other exception
    wsr     a0, excsave1
    j       emulate
    .org    0x340
    j       fault
    .org    0x3c0
    j       fault
    .org    0x400

    .section .literal, "ax"     # not in .text: LLVM 22 reaches some literals of its own section 4 bytes off
    .p2align 2
saved_address:     .long saved
emulated_address:  .long emulated_instructions
no_exception:      .long 0xffffffef
started:           .long 0x4000f
vectors_address:   .long _vectors
stack_address:     .long _stack_top
bss_address:       .long _bss_start
bss_end_address:   .long _bss_end
main_address:      .long main

    .text
# saved: a0 to a15, then EPC1 and PS.
    .p2align 2
emulate:
    l32r    a0, saved_address
    s32i    a1, a0, 4
    s32i    a2, a0, 8
    s32i    a3, a0, 12
    rsr     a2, exccause
    bnez    a2, fault           # not an illegal instruction
    rsr     a2, excsave1
    s32i    a2, a0, 0
    rsr     a2, epc1
    s32i    a2, a0, 64
    rsr     a3, ps
    s32i    a3, a0, 68
    l32r    a2, no_exception    # so that older windows are spilled when a4, a8 and a12 are touched
    and     a2, a3, a2
    movi    a3, 15
    or      a2, a2, a3
    wsr     a2, ps
    rsync
    or      a4, a4, a4
    or      a8, a8, a8
    or      a12, a12, a12
    l32i    a3, a0, 68
    wsr     a3, ps
    rsync
    s32i    a4, a0, 16
    s32i    a5, a0, 20
    s32i    a6, a0, 24
    s32i    a7, a0, 28
    s32i    a8, a0, 32
    s32i    a9, a0, 36
    s32i    a10, a0, 40
    s32i    a11, a0, 44
    s32i    a12, a0, 48
    s32i    a13, a0, 52
    s32i    a14, a0, 56
    s32i    a15, a0, 60
    l32i    a2, a0, 64          # the instruction: t = 0, s; then r, and its code
    l8ui    a3, a2, 0
    l8ui    a4, a2, 1
    l8ui    a5, a2, 2
    extui   a6, a3, 4, 4
    extui   a7, a4, 0, 4
    extui   a8, a4, 4, 4
    extui   a3, a3, 0, 4
    bnez    a3, fault
    addx4   a6, a6, a0
    addx4   a7, a7, a0
    addx4   a8, a8, a0
    l32i    a6, a6, 0
    l32i    a7, a7, 0
    extui   a9, a6, 0, 16       # the high half of a product without signs, from four of 16 x 16 bits
    extui   a10, a6, 16, 16
    extui   a11, a7, 0, 16
    extui   a12, a7, 16, 16
    mull    a13, a9, a11
    mull    a14, a10, a11
    extui   a13, a13, 16, 16
    add     a14, a14, a13
    mull    a15, a9, a12
    extui   a13, a14, 0, 16
    extui   a14, a14, 16, 16
    add     a15, a15, a13
    extui   a15, a15, 16, 16
    mull    a13, a10, a12
    add     a13, a13, a14
    add     a13, a13, a15
    movi    a15, 96             # what MULUH costs here beyond the one instruction that it is on an ESP32
    movi    a14, 0xA2           # the third byte of MULUH
    beq     a5, a14, 1f
    movi    a14, 0xB2
    bne     a5, a14, fault
    movi    a15, 105            # what MULSH costs
    srai    a9, a6, 31          # with signs
    and     a9, a9, a7
    srai    a10, a7, 31
    and     a10, a10, a6
    sub     a13, a13, a9
    sub     a13, a13, a10
1:  s32i    a13, a8, 0
    l32r    a4, emulated_address
    l32i    a3, a4, 0
    add     a3, a3, a15
    s32i    a3, a4, 0
    addi    a2, a2, 3           # a zero-overhead loop may not end in one of them
    wsr     a2, epc1
    l32i    a1, a0, 4
    l32i    a2, a0, 8
    l32i    a3, a0, 12
    l32i    a4, a0, 16
    l32i    a5, a0, 20
    l32i    a6, a0, 24
    l32i    a7, a0, 28
    l32i    a8, a0, 32
    l32i    a9, a0, 36
    l32i    a10, a0, 40
    l32i    a11, a0, 44
    l32i    a12, a0, 48
    l32i    a13, a0, 52
    l32i    a14, a0, 56
    l32i    a15, a0, 60
    l32i    a0, a0, 0
    rsync
    rfe

fault:
    movi    a3, 99              # the exit status
    movi    a2, 1
    .byte   0x00, 0x51, 0x00    # simcall, which LLVM has no name for
2:  j       2b

    .p2align 2
_start:
    l32r    a2, vectors_address
    wsr     a2, vecbase
    l32r    a1, stack_address
    movi    a0, 0
    movi    a2, 0
    wsr     a2, windowbase
    movi    a2, 1
    wsr     a2, windowstart
    rsync
    l32r    a2, started         # windows, and no exception
    wsr     a2, ps
    rsync
    l32r    a2, bss_address
    l32r    a3, bss_end_address
    movi    a4, 0
1:  bgeu    a2, a3, 2f
    s32i    a4, a2, 0
    addi    a2, a2, 4
    j       1b
2:  l32r    a4, main_address
    callx8  a4
    or      a3, a10, a10
    movi    a2, 1
    .byte   0x00, 0x51, 0x00
3:  j       3b

# int simulator_write(int file, const void *bytes, int count)
    .p2align 2
    .global simulator_write
simulator_write:
    entry   a1, 32
    or      a5, a4, a4
    or      a4, a3, a3
    or      a3, a2, a2
    movi    a2, 4
    .byte   0x00, 0x51, 0x00
    retw

# Its own frame lies below its caller's stack pointer.
    .p2align 2
    .global board_stack_pointer
board_stack_pointer:
    entry   a1, 32
    addi    a2, a1, 32
    retw

    .section .bss, "aw", @nobits
    .p2align 2
saved:  .space  72
    .global emulated_instructions
emulated_instructions:  .space  4

    .section .note.GNU-stack, "", @progbits
