/* The class of the largest output, the first of equals. */
static void classify(const int8_t *outputs, int32_t count, int32_t *answer)
{
    int32_t best = 0;
    for (int32_t i = 1; i < count; i++)
        if (outputs[i] > outputs[best])
            best = i;
    *answer = best;
}
