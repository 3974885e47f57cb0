// Start, and the two system calls of Xtensa's simulator interface: 1 exits with the code in a3, 4 writes.
    .section .reset, "ax"
    .global _reset
_reset:
    j       _start

    .section .text.start, "ax"
    .literal_position
    .align  4
    .global _start
_start:
    movi    a1, _stack_top
    movi    a2, _bss_start
    movi    a3, _bss_end
    movi    a4, 0
1:  bgeu    a2, a3, 2f
    s32i    a4, a2, 0
    addi    a2, a2, 4
    j       1b
2:  call0   main
    mov     a3, a2
    movi    a2, 1
    simcall
3:  j       3b

// int simulator_write(int file, const void *bytes, int count)
    .align  4
    .global simulator_write
simulator_write:
    mov     a5, a4
    mov     a4, a3
    mov     a3, a2
    movi    a2, 4
    simcall
    ret

// A function without a frame: its stack pointer is its caller's.
    .align  4
    .global board_stack_pointer
board_stack_pointer:
    mov     a2, a1
    ret
