/* Runs golden inputs through the network, and compares every output byte. */
#include <stdio.h>
#include <string.h>

#include "golden.h"
#include "@name@.h"
@arena_array@
int main(void)
{
    const char *wrong = @name@_init(@init@);
    int equal = 0;
    if (wrong) {
        printf("%s\n", wrong);
        return 1;
    }
    for (int i = 0; i < GOLDEN_SAMPLES; i++) {
        @fill@
        @name@_invoke();
        @compare@
        @show@
    }
    printf("@name@: %d of %d outputs equal\n", equal, GOLDEN_SAMPLES);
    return equal != GOLDEN_SAMPLES;
}
