#pragma once
#define CONFIG_ATALAIA_REPEATS 3
#define CONFIG_IDF_TARGET "stub"
