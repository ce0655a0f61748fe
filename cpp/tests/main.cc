// Tests: runs all, or those whose name has the argument in it.
#include "harness.h"

#include <cstring>

int main(int count, char** arguments)
{
    int passed = 0;
    int failed = 0;
    for (auto const& test : tests::all())
    {
        if (count > 1 && std::strstr(test.name, arguments[1]) == nullptr)
        {
            continue;
        }
        cuelight_standin_reset();
        cuelight_standin_source(nullptr, nullptr, nullptr);
        try
        {
            test.body();
            passed++;
        }
        catch (std::exception const& error)
        {
            std::cout << "FAILED " << test.name << ": " << error.what() << "\n";
            failed++;
        }
    }
    std::cout << passed << " passed, " << failed << " failed\n";
    return failed == 0 && passed > 0 ? 0 : 1;
}
