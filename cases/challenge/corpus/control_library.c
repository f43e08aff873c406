/* SPDX-License-Identifier: Apache-2.0
 *
 * Right: a library instead of a Python file.
 */
#define CORE_HONEST
#include "library_core.h"
