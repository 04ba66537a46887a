"""Do the families of matrix instructions and libraries give the same bits?"""
