/* Products of two matrices that are both computed; steps say how their values follow each other, so either may be turned. */
typedef struct {
    uint32_t batch, rows, columns, inner;
    uint32_t a_batch, b_batch; /* bytes from one matrix to the next; 0 where there is one for all */
    uint32_t a_row, a_step, b_column, b_step;
    uint8_t a_zero, b_zero, out_zero;
    int8_t shift;
    int32_t multiplier;
} batch_matmul_t;

static void batch_matmul(const batch_matmul_t *m, const uint8_t *a, const uint8_t *b, uint8_t *out)
{
    for (uint32_t n = 0; n < m->batch; n++, a += m->a_batch, b += m->b_batch)
        for (uint32_t i = 0; i < m->rows; i++)
            for (uint32_t j = 0; j < m->columns; j++) {
                const uint8_t *p = a + i * m->a_row, *q = b + j * m->b_column;
                int32_t sum = 0;
                for (uint32_t left = m->inner; left--; p += m->a_step, q += m->b_step)
                    sum += (*p - m->a_zero) * (*q - m->b_zero);
                *out++ = clamp(rescale(sum, m->multiplier, m->shift) + m->out_zero, 0, 255);
            }
}
