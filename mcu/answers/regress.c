/* Each output's real value in 1/65536; `step`: of one integer, so that no product leaves 32 bits. */
static void regress(const int8_t *outputs, int32_t count, int32_t zero_point, int32_t step, int32_t *answer)
{
    for (int32_t i = 0; i < count; i++)
        answer[i] = (outputs[i] - zero_point) * step;
}
